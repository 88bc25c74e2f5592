"""Adam and AdamW with torch.optim's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import ADAM, ADAMW, AMSGRAD, AMSGRADW, Rule, with_decay
from ..variables.registry import HasRegistry
from .base import Optimizer
from .caution import with_caution
from .checks import check_at_least, check_betas
from .flags import refuse_differentiable
from .formats import StateFormat

# By (decays a group its values alone, uses a group the running maximum).
_RULES = {(False, False): ADAM, (False, True): AMSGRAD, (True, False): ADAMW, (True, True): AMSGRADW}


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient, or acts on the value alone if decoupled.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of gradients and of squares.
        eps: Added to the root.
        weight_decay: Added to the gradient; with `decoupled_weight_decay`, of the value alone, as AdamW's.
        amsgrad: Divide by the largest average of squares so far, which is one more state.
        maximize: Ascend.
        foreach, capturable, fused: Accepted, and change nothing: the step is fused, and capturable, always.
        differentiable: Refused where True.
        decoupled_weight_decay: See above; param groups may differ.
        cautious_decay: Decay only what the step moves towards zero (Chen et al. 2025, arXiv 2510.12402); needs
            decoupled decay.
        cautious: Move no element against its gradient, and the others of its variable by more (Liang et al. 2024, arXiv
            2411.16085); one more launch, needs decoupled decay.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    known_states = AMSGRAD.states
    needs_step = True

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
        decoupled_weight_decay: bool = False,
        cautious_decay: bool = False,
        cautious: bool = False,
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
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
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
        if (numbers.get("cautious_decay") or numbers.get("cautious")) and not numbers["decoupled_weight_decay"]:
            raise ValueError(
                "cautious_decay=True and cautious=True are for decoupled decay; use AdamW, or pass "
                "decoupled_weight_decay=True as well"
            )

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return _RULES[False, bool(group["amsgrad"])].states

    def rule(self) -> Rule:
        decoupled = {bool(group["decoupled_weight_decay"]) for group in self.param_groups if group["params"]}
        amsgrad = any(group["amsgrad"] for group in self.param_groups)
        rule = _RULES[decoupled == {True}, amsgrad]
        if len(decoupled) == 2:
            if any(group.get(name) for group in self.param_groups for name in ("cautious_decay", "cautious")):
                raise ValueError(
                    "cautious_decay and cautious are for optimizers whose groups all have decoupled decay, and some "
                    "here have decoupled_weight_decay=False; make two optimizers, or give those decoupled decay as well"
                )
            return with_decay(rule, "either")
        return with_caution(rule, self.param_groups)


class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019): weight decay acts on the value alone.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the averages of gradients and of squares.
        eps: Added to the root.
        weight_decay: Decoupled.
        amsgrad: Divide by the largest average of squares so far, which is one more state.
        maximize: Ascend.
        foreach, capturable, fused: Accepted, and change nothing: the step is fused, and capturable, always.
        differentiable: Refused where True.
        cautious_decay: Decay only what the step moves towards zero (Chen et al. 2025, arXiv 2510.12402); param groups
            may differ.
        cautious: Move no element against its gradient, and the others of its variable by more (Liang et al. 2024, arXiv
            2411.16085); one more launch; param groups may differ.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.

    Example:
        >>> optimizer = fv.optim.AdamW(store, lr=3e-4, weight_decay=0.1, max_norm=1.0)
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        cautious_decay: bool = False,
        cautious: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            cautious_decay=cautious_decay,
            cautious=cautious,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
            stats=stats,
        )

    def after_load(self) -> None:
        """As torch's, it decays as AdamW does whatever was loaded."""
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
