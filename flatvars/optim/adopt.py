"""ADOPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ADOPT as ADOPT_RULE
from ..backend import Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .formats import StateFormat


class ADOPT(Optimizer):
    """ADOPT (Taniguchi et al. 2024, arXiv 2411.02853): Adam that converges with any betas[1].

    The gradient is divided by the root of squares up to the step before, and clipped. The first step of a variable
    gathers alone.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of divided gradients and of squares.
        eps: The least that is divided by.
        weight_decay: Added to the gradient; with `decoupled_weight_decay`, of the value alone, as AdamW's.
        decoupled_weight_decay: See above; param groups may differ.
        clip_exponent: Divided gradients stay within (t - 1)^clip_exponent at step t; None does not clip. It stands for
            the function `clip_lambda` of the authors' class.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    optional = frozenset({"clip_exponent"})
    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        clip_exponent: float | None = 0.25,
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
            "decoupled_weight_decay": decoupled_weight_decay,
            "clip_exponent": clip_exponent,
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
        if numbers["clip_exponent"] is not None:
            check_at_least(0.0, clip_exponent=numbers["clip_exponent"])

    def rule(self) -> Rule:
        return ADOPT_RULE
