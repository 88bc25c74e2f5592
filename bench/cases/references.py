"""What optimizers are compared with that torch.optim has not got: the formulas of the tests, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.cases.hyper import HYPER
from tests.support import beyond_torch

FORMULAS: dict[str, tuple[Callable[..., Any], int]] = {
    "adan": (beyond_torch.adan, 4),
    "ademamix": (beyond_torch.ademamix, 3),
    "adopt": (beyond_torch.adopt, 2),
    "grams": (beyond_torch.grams, 2),
    "lamb": (beyond_torch.lamb, 2),
    "lars": (beyond_torch.lars, 1),
    "mars": (beyond_torch.mars, 3),
    "stable-adamw": (beyond_torch.stable_adamw, 2),
    "schedule-free-adamw": (beyond_torch.schedule_free_adamw, 4),
    "schedule-free-sgd": (beyond_torch.schedule_free_sgd, 3),
    "prodigy": (beyond_torch.prodigy, 4),
}
"""Each with the number of its states, scalars of a variable among them."""


class Formula(torch.optim.Optimizer):
    """Steps by one of `FORMULAS`, variable by variable."""

    def __init__(self, groups: list[dict[str, Any]], name: str) -> None:
        super().__init__(groups, {"maximize": False, **HYPER[name]})
        self.formula, self.states = FORMULAS[name]
        self.count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, group)

    def move(self, p: Tensor, group: dict[str, Any]) -> None:
        states = self.state[p].get("states") or (torch.zeros_like(p),) * self.states
        value, self.state[p]["states"] = self.formula(p.detach().clone(), p.grad, states, group, self.count)
        p.copy_(value)


class Prodigy(Formula):
    """One distance of all variables, which their formula is given (konstmish/prodigy)."""

    def __init__(self, groups: list[dict[str, Any]], name: str) -> None:
        super().__init__(groups, name)
        self.d = self.largest = HYPER[name]["d0"]
        self.numerator = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        params = [p for some in self.param_groups for p in some["params"] if p.grad is not None]
        share, beta3 = self.d / group["d0"] * self.d * group["lr"], group["betas"][1] ** 0.5
        below = 0.0
        self.numerator *= beta3
        for p in params:
            states = self.state[p].get("states")
            first, s = (states[3], states[2]) if states else (p, torch.zeros_like(p))
            self.numerator += share * float((p.grad * (first - p)).sum())
            below += float((beta3 * s + share * p.grad).abs().sum())
        found = group["d_coef"] * self.numerator / below
        start = max(self.d, found) if self.d == group["d0"] else self.d
        self.largest = max(self.largest, found)
        next_d = min(self.largest, start * group["growth_rate"])
        for some in self.param_groups:
            some.update(d=self.d, next_d=next_d)
        super().step()
        self.d = next_d


def reference_of(name: str, groups: list[dict[str, Any]]) -> Formula:
    """The optimizer of `FORMULAS` that is meant by a name."""
    return (Prodigy if name == "prodigy" else Formula)(groups, name)
