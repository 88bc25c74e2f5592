"""One exchange of gradients: how far it is, and whether what was sent can be stepped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter, is_, is_not

import torch
from torch import Tensor

from ..distributed.collectives import Reduction
from ..variables.variable import Variable
from .cuts import Cut

WAY_OUT = "call zero_grad() of the store or the optimizer on every rank, and begin the step anew"


_exists = partial(is_not, None)
_grad, _version = attrgetter("grad"), attrgetter("_version")


@dataclass(frozen=True)
class Noted:
    """What lay in `.grad` of some variables.

    Attributes:
        places: Of the variables among those of the cut.
        params: Of them.
        grads, versions: What lay there; versions of what is none are left out.
    """

    places: list[int]
    params: list[Tensor]
    grads: Sequence[Tensor | None]
    versions: list[int]

    @classmethod
    def of(cls, places: list[int], params: list[Tensor], grads: Sequence[Tensor | None]) -> Noted:
        """As it is now."""
        return cls(places, params, grads, list(map(_version, filter(_exists, grads))))

    def rows(self) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        return zip(self.places, self.grads, self.params, strict=True)

    def changed(self, after_check: bool) -> int | None:
        """Place of a variable in whose `.grad` another tensor lies, or the same at another version; None if none.

        Args:
            after_check: A GradScaler may have looked at all, which counts each up by one.
        """
        now = list(map(_grad, self.params))
        if all(map(is_, now, self.grads)):
            versions = list(map(_version, filter(_exists, now)))
            if versions == self.versions or (after_check and versions == [version + 1 for version in self.versions]):
                return None
        versions_of = iter(self.versions)
        allowed = (0, 1) if after_check else (0,)
        for place, grad, param in self.rows():
            version = 0 if grad is None else next(versions_of)
            if param.grad is not grad or (grad is not None and grad._version - version not in allowed):
                return place
        return None


@dataclass
class Exchange:
    """One exchange.

    Attributes:
        scale: float32 [] that gradients are divided by before they are sent.
        open: Whether the block has not ended.
        next: The bucket to be started next.
        missing: Of each bucket, how many gradients the backward pass has not reached.
        complete: The buckets of which it has reached all, in that order.
        arrived, touched: Of each variable, whether the backward pass has reached it, and whether it may have a
            gradient.
        noted: What lay in `.grad` of some variables when they were sent, and its versions.
        flags: float64 [variables]: not 0 where this rank has a gradient.
        words: What the message of a step says of the order of buckets.
        fault: Why it cannot be stepped; None where it can.
        error: What putting a bucket raised first.
        is_void: Whether nothing was put: the buckets that the ranks agreed on are not those of the variables that train
            here now. Zeros are sent, as others wait for something; gradients stay where they are.
    """

    cut: Cut
    scale: Tensor | None
    flags: Tensor
    open: bool = True
    next: int = 0
    missing: list[int] = field(default_factory=list)
    complete: list[int] = field(default_factory=list)
    arrived: list[bool] = field(default_factory=list)
    touched: list[bool] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    works: list[Reduction] = field(default_factory=list)
    fault: str | None = None
    error: Exception | None = None
    other_scale: Tensor | None = None
    is_void: bool = False

    def found_order(self) -> list[int] | None:
        """The order in which the backward pass was through with buckets, as `Cut.order`; None where none was seen.

        Those that it did not reach wholly come last, as they hold up all behind them.
        """
        if not self.complete:
            return None
        rest = [n for n in range(len(self.missing)) if n not in set(self.complete)]
        return [self.cut.order[n] for n in (*self.complete, *rest)]

    def is_gone(self) -> bool:
        """Whether a module's own zero_grad() has dropped all gradients that were sent."""
        rows = ((place, grad, param) for one in self.noted for place, grad, param in one.rows() if self.touched[place])
        return all(grad is not None and param.grad is None for _, grad, param in rows)

    def told(self) -> str | None:
        """What this rank has to say of a step that the ranks did not take. Synchronizes."""
        if self.fault is None and self.other_scale is not None and bool(self.other_scale):
            return (
                "the GradScaler's scale is another one than when last_backward(scaler=) began; call scaler.update() "
                f"after the step; {WAY_OUT}"
            )
        return self.fault

    def faults(self) -> Tensor | float:
        """Not 0 where this rank's gradients cannot be stepped."""
        if self.fault is not None or self.other_scale is None:
            return float(self.fault is not None)
        return self.other_scale.to(torch.float64)

    def check_scale(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Notes a fault where a step has another scale than what was sent was divided by."""
        if self.scale is not None and grad_scale is not None:
            self.other_scale = self.scale != grad_scale
        elif grad_scale is not None:
            self.fault = self.fault or f"a GradScaler steps, and last_backward() was not given it: scaler=; {WAY_OUT}"
        elif self.scale is not None or found_inf is not None:
            self.fault = self.fault or (
                "last_backward(scaler=) divides gradients by the scale, and the step was called without it: leave "
                f"scaler.unscale_() out, call scaler.step(optimizer), and clip by max_norm=; {WAY_OUT}"
            )

    def check_same(self, generation: int, after_check: bool) -> None:
        """Notes a fault where gradients are others than those that were sent.

        Args:
            generation: Of the registry.
            after_check: A GradScaler has looked at them, which it does by multiplying each by 1 in place.
        """
        if self.cut.generation != generation:
            self.fault = self.fault or f"variables were frozen, masked or moved after last_backward(); {WAY_OUT}"
        for noted in self.noted:
            place = noted.changed(after_check)
            if place is not None:
                self.spoil(self.cut.variables[place])

    def spoil(self, variable: Variable) -> None:
        """Notes that a variable's gradient is another by now."""
        self.fault = self.fault or (
            f"the gradient of {variable.name!r} was changed after it had been exchanged: change gradients before, clip "
            f"by max_norm=, and drop them by the store's or the optimizer's zero_grad(); {WAY_OUT}"
        )
