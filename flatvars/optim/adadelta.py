"""Adadelta with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ADADELTA, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least
from .flags import refuse_differentiable
from .formats import StateFormat


class Adadelta(Optimizer):
    """Adadelta (Zeiler 2012): the ratio of averages of steps and of gradients takes the place of a learning rate.

    Args:
        params: As for `Optimizer`.
        lr: Factor of the step.
        rho: Of both averages; 1 is allowed, as in torch.
        eps: Inside both roots.
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
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
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
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "capturable": capturable,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "rho", "eps", "weight_decay")})
        if not numbers["rho"] <= 1.0:
            raise ValueError(f"Invalid rho value: {numbers['rho']}; it must be between 0 and 1")

    def rule(self) -> Rule:
        return ADADELTA
