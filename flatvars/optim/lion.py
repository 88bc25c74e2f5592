"""Lion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backend import LION, Rule
from .base import Optimizer
from .checks import check_at_least, check_betas


class Lion(Optimizer):
    """Lion (Chen et al. 2023): the sign of an average of gradients; one state stream.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate; about a tenth of AdamW's.
        betas: Of the update's average and of the one that is kept.
        weight_decay: Decoupled.
        maximize: Ascend.
        options: Those of `Optimizer`.

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
        **options: Any,
    ) -> None:
        check_at_least(0.0, lr=lr, weight_decay=weight_decay)
        check_betas(betas)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, **options)

    def rule(self) -> Rule:
        return LION
