"""RMSprop with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import RMSPROP, RMSPROP_CENTERED, RMSPROP_CENTERED_MOMENTUM, RMSPROP_MOMENTUM, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least
from .flags import refuse_differentiable
from .formats import StateFormat

# By (is a group centered, has a group momentum).
_RULES = {
    (False, False): RMSPROP,
    (False, True): RMSPROP_MOMENTUM,
    (True, False): RMSPROP_CENTERED,
    (True, True): RMSPROP_CENTERED_MOMENTUM,
}


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012), with momentum and centered (Graves 2013).

    The streams of momentum and of the average gradient exist only where a group has them.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        alpha: Of the average of squares.
        eps: Added to the root.
        weight_decay: Coupled: added to the gradient.
        momentum: Share of the buffer that each step keeps.
        centered: Divide by the deviation from an average gradient, which is one more state.
        capturable, foreach: Accepted, and change nothing: the step is fused always.
        maximize: Ascend.
        differentiable: Refused where True.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.

    Example:
        >>> store = VarStore.from_module(torch.nn.Linear(4, 2))
        >>> optimizer = RMSprop(store, lr=1e-3, momentum=0.9, centered=True)
    """

    known_states = RMSPROP_CENTERED_MOMENTUM.states

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
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
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "alpha", "eps", "weight_decay", "momentum")})

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return _RULES[bool(group["centered"]), bool(group["momentum"])].states

    def rule(self) -> Rule:
        centered = any(group["centered"] for group in self.param_groups)
        return _RULES[centered, any(group["momentum"] for group in self.param_groups)]
