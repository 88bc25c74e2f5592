"""Adam and AdamW with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ADAM, ADAMW, AMSGRAD, AMSGRADW, Rule
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .flags import refuse_differentiable


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient.

    Arguments are torch.optim.Adam's, and those of `Optimizer`. `foreach`, `fused` and `capturable` are accepted and
    change nothing: the step is fused, and capturable, always.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    _rules = (ADAM, AMSGRAD)
    _decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        check_at_least(0.0, lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        refuse_differentiable(differentiable)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": self._decoupled,
        }
        super().__init__(
            params,
            defaults,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
        )

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self._rules[bool(group["amsgrad"])].states

    def rule(self) -> Rule:
        return self._rules[any(group["amsgrad"] for group in self.param_groups)]


class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019): weight decay acts on the value alone. Arguments as for `Adam`."""

    _rules = (ADAMW, AMSGRADW)
    _decoupled = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
