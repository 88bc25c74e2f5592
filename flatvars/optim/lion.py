"""Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import LION, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .caution import with_caution
from .checks import check_at_least, check_betas
from .formats import StateFormat


class Lion(Optimizer):
    """Lion (Chen et al. 2023): the sign of an average of gradients; one state stream.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate; about a tenth of AdamW's.
        betas: Of the update's average and of the one that is kept.
        weight_decay: Decoupled.
        maximize: Ascend.
        cautious_decay: Decay only what the step moves towards zero (Chen et al. 2025, arXiv 2510.12402).
        cautious: Move no element against its gradient, and the others of its variable by more (Liang et al. 2024, arXiv
            2411.16085); one more launch.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
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
        check_at_least(0.0, lr=numbers["lr"], weight_decay=numbers["weight_decay"])
        check_betas(numbers["betas"])

    def rule(self) -> Rule:
        return with_caution(LION, self.param_groups)
