"""AdEMAMix."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..backend import ADEMAMIX, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .caution import with_caution
from .checks import check_at_least, check_betas
from .formats import StateFormat


class AdEMAMix(Optimizer):
    """AdEMAMix (Pagliardini, Ablin and Grangier 2024, arXiv 2409.03137): AdamW with a second, slow average.

    In bfloat16 the slow average stands still where an increment is below its rounding: use `state_dtype=torch.float32`
    for bfloat16 variables.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the fast average, of squares, and of the slow average.
        alpha: Weight of the slow average.
        beta3_warmup, alpha_warmup: Steps in which betas[2] grows from betas[0], and alpha from 0; None for none.
        eps: Added to the root.
        weight_decay: Decoupled.
        maximize: Ascend.
        cautious_decay: Decay only what the step moves towards zero (Chen et al. 2025, arXiv 2510.12402).
        cautious: Move no element against its gradient, and the others of its variable by more (Liang et al. 2024, arXiv
            2411.16085); one more launch.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    lengths: Mapping[str, int] = MappingProxyType({"betas": 3})
    optional = frozenset({"beta3_warmup", "alpha_warmup"})
    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        beta3_warmup: int | None = None,
        alpha_warmup: int | None = None,
        eps: float = 1e-8,
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
            "alpha": alpha,
            "beta3_warmup": beta3_warmup,
            "alpha_warmup": alpha_warmup,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "eps", "weight_decay", "alpha")})
        check_betas(numbers["betas"])
        for name in ("beta3_warmup", "alpha_warmup"):
            if numbers[name] is not None:
                check_at_least(0.0, **{name: numbers[name]})

    def rule(self) -> Rule:
        return with_caution(ADEMAMIX, self.param_groups)
