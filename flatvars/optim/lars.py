"""LARS and LARC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import LARS as LARS_RULE
from ..backend import Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least
from .formats import StateFormat


class LARS(Optimizer):
    """LARS (You, Gitman and Ginsburg 2017, arXiv 1708.03888): SGD whose rate is in proportion to value over gradient.

    Two launches, three with `max_norm`. Biases and norms are left out by a param group with another optimizer, or with
    a `trust_coeff` of its own.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        momentum, dampening, nesterov: As of SGD.
        weight_decay: Coupled: added to the gradient.
        trust_coeff: Share of a value that a step may move it by, for lr = 1.
        eps: Added to the gradient's norm.
        trust_clip: No variable steps by more than `lr`, as LARC.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    needs_step = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust_coeff: float = 1e-3,
        eps: float = 1e-8,
        trust_clip: bool = False,
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
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coeff": trust_coeff,
            "eps": eps,
            "trust_clip": trust_clip,
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
        check_at_least(
            0.0, **{name: numbers[name] for name in ("lr", "momentum", "weight_decay", "trust_coeff", "eps")}
        )

    def rule(self) -> Rule:
        return LARS_RULE
