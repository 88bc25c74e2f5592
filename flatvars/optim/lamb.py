"""LAMB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import LAMB as LAMB_RULE
from ..backend import Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .formats import StateFormat


class LAMB(Optimizer):
    """LAMB (You et al. 2020, arXiv 1904.00962): Adam's direction, each variable's step as long as its value asks for.

    Two launches, three with `max_norm`. apex clips to a norm of 1 by itself; here that is `max_norm=1.0`, which divides
    by the norm and 1e-6 as torch's clipping does. With states of less than float32, the step is made of the moments as
    they are stored.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        bias_correction: Whether both moments are corrected.
        betas: Of the averages of gradients and of squares.
        eps: Added to the root.
        weight_decay: Part of the step, whose length is measured with it.
        grad_averaging: Whether a gradient enters the average with 1 - betas[0], and not with 1.
        always_adapt: Adapt variables without weight decay as well (apex: `use_nvlamb`).
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
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        grad_averaging: bool = True,
        always_adapt: bool = False,
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
            "bias_correction": bias_correction,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "grad_averaging": grad_averaging,
            "always_adapt": always_adapt,
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
        return LAMB_RULE
