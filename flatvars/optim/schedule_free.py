"""Schedule-Free AdamW and SGD.

While training, the values are where gradients are taken: y of the paper. `eval()` makes them the average x, which is
what to evaluate and to give away, and `train()` makes them y again; each is one launch a dtype, changes nothing the
second time, and a saved optimizer knows in which form its values are. A step with the values of `eval()` is refused.
Statistics of batch norm that were gathered while training are those of y: gather them anew before evaluating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..backend import SCHEDULE_FREE_ADAMW, SCHEDULE_FREE_SGD, TO_X, TO_Y, Rule
from ..errors import FlatvarsError
from ..variables.registry import HasRegistry
from .base import Optimizer
from .checks import check_at_least, check_betas
from .exchange import apply_once
from .formats import StateFormat
from .hooks import hooked


class ScheduleFree(Optimizer):
    """What both have: two forms of their values."""

    needs_step = True

    @hooked
    def step(self, closure: Callable[[], Any] | None = None, *, strict: bool = False, zero_grad: bool = False) -> Any:
        """As `Optimizer`'s.

        Raises:
            FlatvarsError: the values are those of `eval()`.
        """
        if not all(group["train_mode"] for group in self.param_groups):
            raise FlatvarsError(
                "the values are the average that eval() made of them, from which no step is taken; call "
                "optimizer.train() first. Nothing was stepped"
            )
        return super().step(closure, strict=strict, zero_grad=zero_grad)

    def eval(self) -> None:
        """Makes the values the average, if they are not."""
        self._exchange(False, TO_X)

    def train(self, mode: bool = True) -> None:
        """Makes the values those to train on, if they are not; `eval()` if not `mode`."""
        if mode:
            self._exchange(True, TO_Y)
        else:
            self.eval()

    def _exchange(self, train_mode: bool, rule: Rule) -> None:
        others = [i for i, group in enumerate(self.param_groups) if bool(group["train_mode"]) is not train_mode]
        if others:
            apply_once(self, rule, others)
        for numbers in (self.defaults, *self.param_groups):
            numbers["train_mode"] = train_mode

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `Optimizer`'s; the values are taken to be in the form of those that are there, if nothing else is said."""
        forms = [group["train_mode"] for group in self.param_groups]
        super().add_param_group({"train_mode": forms[0], **param_group} if forms else param_group)


def check_momentum(name: str, number: float) -> None:
    """Raises ValueError for 0, of which no average can be found back."""
    if not number > 0.0:
        raise ValueError(f"Invalid {name}: {number}; Schedule-Free needs one above 0")


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-Free AdamW (Defazio et al. 2024, arXiv 2405.15682): an average of the values takes a schedule's place.

    Call `eval()` before evaluating or saving for others, and `train()` before going on: see the top of this file.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        betas: Of the interpolation, above 0, and of the average of squares.
        eps: Added to the root.
        weight_decay: At the values while training.
        warmup_steps: Steps of a variable in which the rate grows to lr.
        r: Weights of later steps in the average grow with t^r.
        weight_lr_power: And with the largest rate so far to this power.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
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
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "maximize": maximize,
            "train_mode": True,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "eps", "weight_decay", "warmup_steps")})
        check_betas(numbers["betas"])
        check_momentum("betas[0]", numbers["betas"][0])

    def rule(self) -> Rule:
        return SCHEDULE_FREE_ADAMW


class ScheduleFreeSGD(ScheduleFree):
    """Schedule-Free SGD (Defazio et al. 2024, arXiv 2405.15682): an average of the values takes a schedule's place.

    Call `eval()` before evaluating or saving for others, and `train()` before going on: see the top of this file.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate.
        momentum: Of the interpolation, above 0 and below 1.
        weight_decay: At the values while training.
        warmup_steps: Steps of a variable in which the rate grows to lr.
        r: Weights of later steps in the average grow with t^r.
        weight_lr_power: And with the largest rate so far to this power.
        maximize: Ascend.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
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
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "maximize": maximize,
            "train_mode": True,
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
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "weight_decay", "warmup_steps")})
        check_at_least(0.0, momentum=numbers["momentum"])
        check_betas([numbers["momentum"]])
        check_momentum("momentum", numbers["momentum"])

    def rule(self) -> Rule:
        return SCHEDULE_FREE_SGD
