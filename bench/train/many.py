"""The second comparison: a model of a thousand small tensors, as mixtures of experts and adapters have.

Here a loop over tensors takes the time, not the memory. Both sides are those of the GPT, with the same optimizer,
clipping and schedule; what is learned is a function of noise, so that nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.train.loop import Record, train
from bench.train.measure import WorkCounter
from bench.train.options import Job
from bench.train.report import side_figures
from bench.train.sides import build_sides

EXPERTS = 500
WIDTH = 16
BATCH = 32
STEPS = 60
LR = 3e-3
QUICK = (25, 12)
"""Experts and steps, to see that everything works."""


class Experts(nn.Module):
    """The mean of many small layers, a weight [16, 16] and a bias [16] each, behind one normalization."""

    def __init__(self, experts: int = EXPERTS, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, width] to the same shape."""
        weights = torch.stack([expert.weight for expert in self.experts])
        biases = torch.stack([expert.bias for expert in self.experts])
        return torch.tanh(torch.einsum("bi,eoi->beo", self.norm(x), weights) + biases).mean(dim=1)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of [batch, width]."""
        return nn.functional.mse_loss(self(inputs.to(self.norm.weight.dtype)).float(), targets)


def drawing(job: Job) -> Callable[[], tuple[Tensor, Tensor]]:
    """Batches of noise with what a fixed small network makes of it; the same for a seed."""
    generator = torch.Generator().manual_seed(job.seed)
    teacher = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5

    def draw() -> tuple[Tensor, Tensor]:
        inputs = torch.randn(BATCH, WIDTH, generator=generator)
        return inputs.to(job.device), torch.sin(inputs @ teacher).to(job.device)

    return draw


def compare(job: Job) -> tuple[dict, dict[str, Record]]:
    """Trains both sides in lockstep.

    Returns:
        Figures, ready for JSON, and the records.
    """
    experts, steps = QUICK if job.preset == "quick" else (EXPERTS, STEPS)
    job = replace(job, steps=steps, stop_at=steps, micro_batches=1, freeze=(), lr=LR, amp=False)
    sides = build_sides(job, lambda: Experts(experts))
    records = {side.name: Record() for side in sides}
    train(sides, records, drawing(job), job, 0, lambda _: True)
    params = list(sides[0].model.parameters())
    figures = {
        "tensors": len(params),
        "parameters": sum(param.numel() for param in params),
        "steps": steps,
        "work_unit": WorkCounter.unit(job.device),
        "sides": {name: side_figures(record) for name, record in records.items()},
    }
    return figures, records
