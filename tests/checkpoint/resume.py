"""Training runs that are interrupted, by test_resume.py; what goes on is a process of its own.

python -m tests.checkpoint.resume second FOLDER
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler

import flatvars as fv
from tests.support.stores import Net

from .support import seed_everything

MICRO = 3
"""Micro-batches of a cycle."""


class Dropping(Net):
    """A net whose every forward pass draws random numbers."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        noise = float(np.random.rand()) + random.random()
        return nn.functional.dropout(super().forward(tokens), 0.2) + 0.01 * noise


@dataclass
class Run:
    """One training run: everything a script would build before its loop."""

    net: nn.Module
    store: fv.VarStore
    optimizer: Any
    schedulers: list[Any]
    generator: torch.Generator

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, 11, (8,), generator=self.generator)
        return tokens, torch.randn(8, 5, generator=self.generator)


Make = Callable[[fv.VarStore], Any]
Work = Callable[[Run, int], None]


def backward(run: Run) -> None:
    tokens, target = run.batch()
    (run.net(tokens).float() - target).square().mean().backward()


def whole_step(run: Run, i: int) -> None:
    """The usual step; gradients are NaN at two steps, and at some a layer has none."""
    backward(run)
    if i in (4, 26, 37):
        run.net.head.weight.grad[0, 0] = float("nan")
    if i % 5 == 0:
        run.net.conv.bias.grad = None
    run.optimizer.step()
    run.optimizer.zero_grad()
    for scheduler in run.schedulers:
        scheduler.step()


def micro_step(run: Run, i: int, *, accumulate: bool) -> None:
    """A micro-batch; every third ends a cycle. Interrupted within one, for the numbers of steps here."""
    backward(run)
    if accumulate:
        run.store.accumulate(scale=1 / MICRO)
    if i % MICRO == MICRO - 1:
        run.optimizer.step()
        run.optimizer.zero_grad()
        for scheduler in run.schedulers:
            scheduler.step()


def late_step(run: Run, i: int) -> None:
    """Accumulated but not stepped yet when interrupted: the norm was taken by the accumulation."""
    run.optimizer.step() if i else None
    run.optimizer.zero_grad()
    backward(run)
    run.store.accumulate()


def mixed_step(run: Run, i: int) -> None:
    """Sums in the stream and in `.grad` at the same time."""
    backward(run)
    if i % 4 == 1:
        run.store.accumulate(scale=0.5)
    if i % 4 == 3:
        run.optimizer.step()
        run.optimizer.zero_grad()


def frozen_step(run: Run, i: int) -> None:
    """Masks change on the way."""
    if i == 3:
        run.store.freeze("embedding.*")
    if i == 6:
        run.store.freeze("conv.*")
        run.net.norm.bias.requires_grad_(False)
    if i == 26:
        run.store.unfreeze("conv.*")
    whole_step(run, i)


def unspent_step(run: Run, i: int) -> None:
    """No zero_grad after the step: gradients stay, and the next backward pass adds to them."""
    backward(run)
    run.optimizer.step()


def adamw(store: fv.VarStore) -> fv.optim.Optimizer:
    return fv.optim.AdamW(store, lr=1e-2, max_norm=0.5, skip_nonfinite=True)


def grouped(store: fv.VarStore) -> fv.optim.Optimizer:
    groups = [{"params": ["*.bias", "norm.*"], "weight_decay": 0.0, "lr": 3e-3}, {"params": "*", "betas": (0.8, 0.95)}]
    return fv.optim.AdamW(groups, store=store, lr=1e-2, max_norm=0.5, skip_nonfinite=True)


def tensor_lr(store: fv.VarStore) -> fv.optim.Optimizer:
    return fv.optim.Adam(store, lr=torch.tensor(1e-2), amsgrad=True)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.7),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5, 22], gamma=0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.0 / (1 + epoch)),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=60),
    "cosine": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
}


@dataclass(frozen=True)
class Case:
    make: Make = adamw
    work: Work = whole_step
    schedules: tuple[str, ...] = ()
    grads: str = "gather"
    dtype: torch.dtype | None = None
    steps: int = 20


momentum = partial(fv.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01)

CASES: dict[str, Case] = {
    "adamw": Case(),
    "bfloat16": Case(dtype=torch.bfloat16),
    "groups": Case(grouped, schedules=("cosine",)),
    "momentum": Case(momentum),
    "amsgrad, tensor lr": Case(tensor_lr),
    "lion": Case(partial(fv.optim.Lion, lr=1e-3)),
    "views": Case(grads="views"),
    "frozen": Case(work=frozen_step),
    "frozen, groups": Case(grouped, frozen_step),
    "no zero_grad": Case(work=unspent_step),
    "micro-batches in .grad": Case(work=partial(micro_step, accumulate=False), steps=2 * 22),
    "micro-batches accumulated": Case(work=partial(micro_step, accumulate=True), steps=2 * 22),
    "micro-batches, bfloat16": Case(work=partial(micro_step, accumulate=True), steps=2 * 20, dtype=torch.bfloat16),
    "micro-batches, views": Case(work=partial(micro_step, accumulate=False), steps=2 * 22, grads="views"),
    "before the step": Case(work=late_step),
    "stream and .grad": Case(work=mixed_step, steps=2 * 11),
    **{f"schedule {name}": Case(schedules=(name,)) for name in SCHEDULES},
    "two schedules": Case(schedules=("multistep", "lambda")),
}


def start(case: Case, seed: int) -> Run:
    seed_everything(seed)
    net = Dropping().to(case.dtype) if case.dtype else Dropping()
    store = fv.VarStore.from_module(net, grads=case.grads)
    optimizer = case.make(store)
    schedulers = [SCHEDULES[name](optimizer) for name in case.schedules]
    store.zero_grad()
    return Run(net, store, optimizer, schedulers, torch.Generator().manual_seed(seed))


def result(run: Run) -> dict[str, Any]:
    """Everything that must be equal, bit for bit."""
    state = {f"{i}.{key}": value for i, s in run.optimizer.state_dict()["state"].items() for key, value in s.items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in run.optimizer.state_dict()["param_groups"]]
    grads = {f"grad {name}": v.grad for name, v in run.store.variables().items() if v.grad is not None}
    return {
        **{name: v.value for name, v in run.store.variables().items()},
        **state,
        **grads,
        "flags": [(v.name, v.requires_grad, v.frozen) for v in run.store.variables().values()],
        "groups": repr(groups),
        "skipped": int(run.optimizer.skipped),
        "schedulers": repr([scheduler.state_dict() for scheduler in run.schedulers]),
        "random": (float(torch.rand(())), float(np.random.rand()), random.random()),
        "generator": float(torch.rand((), generator=run.generator)),
    }


def run_part(part: str, folder: Path) -> None:
    """Every case's whole run ("straight"), or its "first" or "second" half."""
    for name, case in CASES.items():
        path = folder / f"{name}.safetensors"
        run = start(case, seed=0 if part != "second" else 99)
        schedulers = run.schedulers or None
        rng = {"data": run.generator}
        if part == "second":
            run.store.load(path, run.optimizer, schedulers, rng)
        half = case.steps // 2
        steps = {"straight": range(case.steps), "first": range(half), "second": range(half, case.steps)}[part]
        for i in steps:
            case.work(run, i)
        if part == "first":
            run.store.save(path, run.optimizer, schedulers, rng)
        else:
            torch.save(result(run), folder / f"{name}.{part}")


if __name__ == "__main__":
    run_part(sys.argv[1], Path(sys.argv[2]))
