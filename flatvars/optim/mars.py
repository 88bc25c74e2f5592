"""MARS-AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import MARS as MARS_RULE
from ..backend import Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .formats import StateFormat


class MARS(Optimizer):
    """MARS-AdamW (Yuan et al. 2024, arXiv 2411.10438): AdamW on gradients corrected by those of the step before.

    Two launches, three with `max_norm`. The authors step variables of one dimension with AdamW: give them a param group
    with `gamma=0.0`, and numbers of its own.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of corrected gradients and of their squares.
        eps: Added to the root.
        weight_decay: Decoupled.
        gamma: Strength of the correction; 0 makes AdamW of it.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 0.025,
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
            "gamma": gamma,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "eps", "weight_decay", "gamma")})
        check_betas(numbers["betas"])

    def rule(self) -> Rule:
        return MARS_RULE
