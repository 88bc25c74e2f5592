"""Rprop with torch.optim's arguments."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import RPROP, Rule, Sources
from ..gradients.plans import Part, PlanSet
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least
from .flags import refuse_differentiable
from .formats import StateFormat


class Rprop(Optimizer):
    """Rprop (Riedmiller and Braun 1993): signs of gradients alone, with a step size for every element.

    For gradients of whole data sets. `lr` is where the step sizes begin: a schedule changes nothing after a variable's
    first step, as in torch; a warning says so once.

    Args:
        params: As for `Optimizer`.
        lr: The first step size.
        etas: What a step size is multiplied with when the sign changed, and when it stayed.
        step_sizes: The smallest and the largest.
        maximize: Ascend.
        foreach, capturable: Accepted, and change nothing: the step is fused always.
        differentiable: Refused where True.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    _warned = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        refuse_differentiable(differentiable)
        self._rates: dict[int, float] = {}  # by identity of the param group
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(
            params,
            defaults,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
            stats=stats,
        )

    def check_numbers(self, numbers: Mapping[str, Any]) -> None:
        check_at_least(0.0, lr=numbers["lr"])
        low, high = numbers["etas"]
        if not 0.0 < low < 1.0 < high:
            raise ValueError(f"Invalid etas: {low}, {high}; give one between 0 and 1, and one above 1")
        least, most = numbers["step_sizes"]
        if not 0.0 <= least <= most:
            raise ValueError(f"Invalid step_sizes: {least}, {most}; give the least, at least 0, and the largest")

    def launch_parts(
        self,
        plans: PlanSet,
        pairs: Sequence[tuple[Part, Sources]],
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
    ) -> None:
        """As `Optimizer`'s; warns once of a learning rate that changes after the first step."""
        for group in self.param_groups:
            self._look_at_rate(group)
        super().launch_parts(plans, pairs, norm, scaling)

    def _look_at_rate(self, group: Mapping[str, Any]) -> None:
        lr = group["lr"]
        if self._warned or isinstance(lr, Tensor):
            return
        if self._calls > 1 and lr != self._rates.get(id(group), lr):
            self._warned = True
            warnings.warn(
                f"Rprop reads lr in the first step of a variable alone, and it changed to {lr}: step sizes grow and "
                "shrink by themselves. Take the schedule out, or set the limits by step_sizes",
                stacklevel=2,
            )
        self._rates[id(group)] = lr

    def rule(self) -> Rule:
        return RPROP
