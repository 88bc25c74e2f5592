"""What storing its averages does to AdamW's update: gradients that are known to hurt, stepped by the kernels.

8,192 numbers in units of 128 with learning rate 1, betas .9 and .999 and no decay, of which a step is the update u. Of
every format: how far u is from that of float32 (root of the mean square, of all steps, divided by that of u), and the
largest |u|. Where gradients fall by ten after a third of the run, also how large u is at its end, beside float32's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import flatvars as fv

ROWS, UNIT, STEPS = 64, 128, 1500
ROOT8 = {"state_format": "root8"}
LOG4 = {"state_format": {"exp_avg": "root8", "exp_avg_sq": "log4"}}
HALF = {"state_dtype": torch.bfloat16}
FORMATS: dict[str, tuple[dict[str, Any], bool]] = {
    "bfloat16, to nearest": (HALF, False),
    "bfloat16, squares at random": (HALF, True),
    "root8": (ROOT8, True),
    "root8, squares in log4": (LOG4, True),
}
"""By name: arguments of AdamW, and whether it rounds at random."""
CASES = ("one scale", "mixed scales", "falling by ten", "columns x 1000", "rare rows")


def gradients(case: str, steps: int, seed: int = 0) -> Iterator[Tensor]:
    """[ROWS, UNIT] each. Mixed scales are 10^N(0, 1/2); a rare row is met once in 20 steps."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(ROWS, UNIT, generator=generator)

    scales = 10.0 ** (0.5 * normal()) if case in ("mixed scales", "falling by ten") else torch.ones(ROWS, UNIT)
    if case == "columns x 1000":
        scales[:, ::32] = 1000.0
    for step in range(steps):
        gradient = scales * normal()
        if case == "rare rows":
            gradient *= torch.rand(ROWS, 1, generator=generator) < 0.05
        yield gradient * (0.1 if case == "falling by ten" and step >= steps // 3 else 1.0)


class Simulated:
    """A value at 0 and its AdamW; a step tells the update and puts the value back."""

    def __init__(self, options: dict[str, Any], at_random: bool) -> None:
        self.value = fv.VarStore().add("weight", torch.zeros(ROWS, UNIT))
        self.optimizer = fv.optim.AdamW([self.value], lr=1.0, weight_decay=0.0, **options)
        self.optimizer.stochastic_rounding = at_random

    def update(self, gradient: Tensor) -> Tensor:
        self.value.grad = gradient.clone()
        self.optimizer.step()
        moved = self.value.detach().clone()
        self.value.data.zero_()
        return moved


def simulate(case: str, steps: int = STEPS) -> dict[str, dict[str, float]]:
    """Of every format: `error`, `largest`, and `late`, the size of updates in the last tenth beside float32's."""
    exact = Simulated({}, True)
    runs = {name: Simulated(*arguments) for name, arguments in FORMATS.items()}
    apart, largest, late = (dict.fromkeys(runs, 0.0) for _ in range(3))
    whole, end, most, last = 0.0, 0.0, 0.0, max(steps // 10, 1)
    for step, gradient in enumerate(gradients(case, steps)):
        wanted, is_late = exact.update(gradient), step >= steps - last
        size = float(wanted.square().sum())
        whole, end, most = whole + size, end + size * is_late, max(most, float(wanted.abs().max()))
        for name, run in runs.items():
            found = run.update(gradient)
            apart[name] += float((found - wanted).square().sum())
            largest[name] = max(largest[name], float(found.abs().max()))
            late[name] += float(found.square().sum()) * is_late
    found = {"float32": {"error": 0.0, "largest": most, "late": 1.0}}
    for name in runs:
        numbers = {"error": math.sqrt(apart[name] / whole), "largest": largest[name]}
        found[name] = {**numbers, "late": math.sqrt(late[name] / end)}
    return found


def table(steps: int = STEPS) -> str:
    """All cases, as a Markdown table: error, largest update, and in brackets the late size."""
    columns = {case: simulate(case, steps) for case in CASES}
    lines = ["| states | " + " | ".join(CASES) + " |", "| --- |" + " --- |" * len(CASES)]
    for name in ("float32", *FORMATS):
        cells = []
        for case in CASES:
            found = columns[case][name]
            late = f" ({found['late']:.2f})" if case == "falling by ten" else ""
            cells.append(f"{found['error']:.3f}, {found['largest']:.1f}{late}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
