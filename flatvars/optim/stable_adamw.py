"""StableAdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import STABLE_ADAMW, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .formats import StateFormat


class StableAdamW(Optimizer):
    """StableAdamW (Wortsman et al. 2023, arXiv 2304.13013): AdamW that slows down where the second moment lags behind.

    The rate of a variable is divided by the root mean square of gradient over second moment where that is above 1, so
    that a spike of the loss needs no clipping. Two launches.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of gradients and of squares.
        eps: Added to the root, and the least that a gradient is divided by.
        weight_decay: Decoupled, by the rate of the variable.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "eps", "weight_decay")})
        check_betas(numbers["betas"])

    def rule(self) -> Rule:
        return STABLE_ADAMW
