"""Averaged SGD with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ASGD as ASGD_RULE
from ..backend import Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least
from .flags import refuse_differentiable
from .formats import StateFormat


class ASGD(Optimizer):
    """Averaged SGD (Polyak and Juditsky 1992): SGD whose values are averaged from step `t0` on, in the state `ax`.

    The rate and the weight of the average are scalars of each variable, float32, on the device; `state` shows them as
    `eta` and `mu`. A step takes the rate that the one before computed: it is one step behind a schedule, as torch's.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        lambd: Decay of the values, and of the rate.
        alpha: Power with which the rate falls.
        t0: Step from which on values are averaged.
        weight_decay: Coupled: added to the gradient.
        maximize: Ascend.
        foreach, capturable: Accepted, and change nothing: the step is fused always.
        differentiable: Refused where True.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        refuse_differentiable(differentiable)
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "weight_decay")})

    def rule(self) -> Rule:
        return ASGD_RULE
