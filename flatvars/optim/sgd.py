"""SGD with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import SGD as SGD_RULE
from ..backend import SGD_MOMENTUM, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_kinds
from .flags import refuse_differentiable
from .formats import StateFormat


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, dampening and Nesterov's form.

    The momentum stream exists only where a group has momentum.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        momentum: Share of the buffer that each step keeps.
        dampening: Share of the gradient that does not enter the buffer.
        weight_decay: Coupled: added to the gradient.
        nesterov: Step by the gradient and one momentum more.
        maximize: Ascend.
        foreach, fused: Accepted, and change nothing: the step is fused always.
        differentiable: Refused where True.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or nesterov without momentum or with dampening.
    """

    known_states = SGD_MOMENTUM.states

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
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
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        check_kinds(defaults, defaults, self.lengths, True)
        if nesterov and (momentum <= 0.0 or dampening != 0.0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "momentum", "weight_decay")})

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return SGD_MOMENTUM.states if group["momentum"] else ()

    def counts_steps(self, group: Mapping[str, Any]) -> bool:
        """Steps with a buffer: the first of them takes the gradient as it is, whenever momentum is switched on."""
        return bool(group["momentum"])

    def rule(self) -> Rule:
        return SGD_MOMENTUM if any(group["momentum"] for group in self.param_groups) else SGD_RULE
