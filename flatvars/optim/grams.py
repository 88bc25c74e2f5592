"""Grams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import GRAMS, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .caution import with_caution
from .checks import check_at_least, check_betas
from .formats import StateFormat


class Grams(Optimizer):
    """Grams (Cao, Li and Song 2024, arXiv 2412.17107): steps of Adam's size in the direction of the gradient's sign.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of gradients and of squares.
        eps: Added to the root, before its bias is corrected.
        weight_decay: Decoupled.
        maximize: Ascend.
        cautious_decay: Decay only what the step moves towards zero (Chen et al. 2025, arXiv 2510.12402).
        cautious: Move no element against its gradient, and the others of its variable by more (Liang et al. 2024, arXiv
            2411.16085); one more launch.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        cautious_decay: bool = False,
        cautious: bool = False,
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
            "cautious_decay": cautious_decay,
            "cautious": cautious,
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
        return with_caution(GRAMS, self.param_groups)
