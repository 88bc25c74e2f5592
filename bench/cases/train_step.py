"""Whole training steps of real architectures: forward, backward, norm, clip, optimizer, zero_grad."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.architectures import ARCHITECTURES
from bench.cases.cell import Cell, Checked, Contender
from bench.cases.hyper import HYPER
from bench.cases.optimizing import MAX_NORM, Trainer

STEPS = 3
# Steps of two libraries that agree to float32 rounding part slowly: three of them stay this close in their losses.
LOSS_LIMIT = 2e-3


def train(cell: Cell, device: str, make: Callable[[Cell, list[nn.Parameter]], Trainer]) -> Contender:
    """The gate compares three losses with those of a plain torch.optim.AdamW loop on a copy of the model."""
    architecture = ARCHITECTURES[cell.on]
    torch.manual_seed(0)
    model = architecture.build().to(device)
    inputs, targets = (x.to(device) for x in architecture.batch(torch.Generator().manual_seed(0)))
    twins = [copy.deepcopy(model)]
    trainer = make(replace(cell, case="tail"), list(model.parameters()))

    def run() -> Tensor:
        loss: Tensor = model.loss(inputs, targets)
        loss.backward()
        trainer.step()
        return loss

    def check() -> Checked:
        wanted = _plain_losses(twins.pop(), inputs, targets)
        losses = [run().item() for _ in range(STEPS)]
        error = max(abs(a / b - 1.0) for a, b in zip(losses, wanted, strict=True))
        return Checked(
            error, max(LOSS_LIMIT, trainer.tolerance or 0.0), note=f"losses {losses[0]:.4f}, {losses[-1]:.4f}"
        )

    return Contender(run, check, keep=[model, trainer])


def _plain_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[float]:
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, **HYPER["adamw"], foreach=False)
    losses = []
    for _ in range(STEPS):
        loss = model.loss(inputs, targets)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return losses
