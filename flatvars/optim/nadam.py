"""NAdam with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import NADAM, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .flags import refuse_differentiable
from .formats import StateFormat


class NAdam(Optimizer):
    """NAdam (Dozat 2016): Adam with Nesterov's momentum, whose strength grows with the steps.

    The product of all momenta is a scalar of each variable, float32, on the device; `state` shows it as `mu_product`.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of gradients and of squares.
        eps: Added to the root.
        weight_decay: Added to the gradient; with `decoupled_weight_decay`, of the value alone, as AdamW's.
        decoupled_weight_decay: See above; param groups may differ.
        momentum_decay: How fast the momentum grows to betas[0].
        maximize: Ascend.
        foreach, capturable: Accepted, and change nothing: the step is fused always.
        differentiable: Refused where True.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "eps", "weight_decay", "momentum_decay")})
        check_betas(numbers["betas"])

    def rule(self) -> Rule:
        return NADAM
