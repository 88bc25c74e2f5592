"""Adan."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..backend import ADAN, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .formats import StateFormat


class Adan(Optimizer):
    """Adan (Xie et al. 2022, arXiv 2208.06677): Adam with Nesterov's momentum, made of differences of gradients.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of gradients, of their differences and of squares; 1 - those of the paper.
        eps: Added to the root.
        weight_decay: The value is divided by 1 + lr weight_decay behind the step.
        no_prox: Decay before the step instead, as AdamW's; param groups may differ.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    lengths: Mapping[str, int] = MappingProxyType({"betas": 3})
    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        no_prox: bool = False,
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
            "no_prox": no_prox,
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
        return ADAN
