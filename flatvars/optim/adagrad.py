"""Adagrad with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ADAGRAD, Rule
from ..errors import FlatvarsError
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least
from .flags import refuse_differentiable
from .formats import StateFormat


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan and Singer 2011): steps shrink with the sum of squares of all gradients.

    A state exists before the first step, as with torch's. A param group's own `initial_accumulator_value` counts;
    torch's class takes that of the defaults for all groups.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        lr_decay: The rate of step t is lr / (1 + (t - 1) lr_decay).
        weight_decay: Coupled: added to the gradient.
        initial_accumulator_value: What the sum of squares begins with.
        eps: Added to the root.
        maximize: Ascend.
        foreach, fused: Accepted, and change nothing: the step is fused always.
        differentiable: Refused where True.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
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
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
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
        check_at_least(
            0.0,
            **{name: numbers[name] for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")},
        )

    def rule(self) -> Rule:
        return ADAGRAD

    def share_memory(self) -> None:
        """torch's moves the sums into shared memory. Here they lie in streams of the store.

        Raises:
            FlatvarsError: always, and says what to do.
        """
        raise FlatvarsError(
            "the sums of this Adagrad lie in streams of its store, which processes do not share; share the values by "
            "store.share_memory_(), and let each process keep sums of its own"
        )
