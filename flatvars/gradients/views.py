"""Gradients as views: every `.grad` lies in the flat stream from the start, and autograd adds into it in place.

None is not zero: every view has a version counter of its own, and one that was written since it was reset has moved on.
No hook is needed to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from ..errors import GradientError
from ..memory.streams import GRADS, same_dtype
from ..variables.registry import Registry
from ..variables.variable import Variable
from .cycle import Collected, Fetch, Given, Gradients, GradientSnapshot, State
from .given import aligned
from .masks import clear_masked
from .plans import PlanSet

WRITTEN = -1  # a version that no view has: it counts as written


class Views(Gradients):
    """See above."""

    mode = "views"

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._attached: dict[int, tuple[Tensor, int]] = {}  # by id: the view of a variable, its version when reset
        self._kept: set[int] = set()  # ids of the variables whose view was written before a carve

    def _view(self, variable: Variable) -> Tensor:
        return self.registry.streams.get(GRADS, variable.dtype, same_dtype).view(variable.span).data

    def dtype_of(self, region: torch.dtype) -> torch.dtype:
        return region

    def state(self, variable: Variable) -> State:
        return State.OPEN if self._is_written(variable) else State.EMPTY

    def _is_written(self, variable: Variable) -> bool:
        view, version = self._attached.get(variable.id, (None, 0))
        grad = variable.param.grad
        return grad is not None and (grad is not view or grad._version != version)

    def _settle(self, variable: Variable) -> bool:
        """Whether the variable has a gradient; one that autograd or the user put elsewhere is taken into the stream."""
        if not self._is_written(variable):
            return False
        grad = variable.param.grad
        view, _ = self._attached.get(variable.id, (None, WRITTEN))
        if grad is not view and grad is not None:
            view = self._view(variable)
            view.copy_(grad.detach().to_dense() if grad.layout != torch.strided else grad.detach())
            variable.param.grad = view
            self._attached[variable.id] = (view, WRITTEN)
        return True

    def _settle_all(self, variables: Sequence[Variable]) -> list[bool]:
        found = []
        nothing = (None, WRITTEN)
        for variable in variables:
            view, version = self._attached.get(variable.id, nothing)
            grad = variable.param.grad
            # By far the most are what they should be: no call for those.
            found.append(grad._version != version if grad is view and grad is not None else self._settle(variable))
        return found

    def _attach(self, variables: Sequence[Variable], written: set[int]) -> None:
        """Points every `.grad` into the stream; those of `written` variables count as written."""
        for variable in variables:
            view = self._view(variable)
            if variable.id in written and variable.param.grad is not None:
                view.copy_(variable.param.grad)
            else:
                view.zero_()  # what a Parameter that was replaced has left
            variable.param.grad = view
            self._attached[variable.id] = (view, WRITTEN if variable.id in written else view._version)

    def _reset(self, variables: Sequence[Variable]) -> None:
        """Every `.grad` is its view again, and counts as not written."""
        for variable in variables:
            if variable.id not in self._attached:  # trained again since; it had room, so nothing was carved
                self._attach([variable], set())
            view, _ = self._attached[variable.id]
            if variable.param.grad is not view:
                variable.param.grad = view
            self._attached[variable.id] = (view, view._version)

    def before_carve(self) -> None:
        super().before_carve()
        # While they can still be told: a change of dtype makes new tensors of them.
        self._kept = {v.id for v in self.registry.variables if self._is_written(v)}

    def after_carve(self) -> None:
        self._attached = {}  # those of frozen variables too, which lie in the old stream
        self._attach(self.registry.trainable(), self._kept)

    # One variable -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def of(self, variable: Variable) -> Tensor | None:
        return variable.param.grad if self._settle(variable) else None

    @torch.no_grad()
    def add(self, variable: Variable, grad: Tensor) -> None:
        own = grad.detach().to(variable.param.device, variable.dtype, copy=True)
        if variable.param.grad is None or self.of(variable) is None:
            variable.param.grad = own
        else:
            variable.param.grad.add_(own)

    # The cycle ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def accumulate(self, grads: Given = None, scale: float = 1.0) -> None:
        plans = self.plans()
        plans.guard.check()
        if scale != 1.0:
            raise GradientError(
                f"accumulate(scale={scale}) cannot scale gradients that autograd already added in place; "
                'scale the loss, or make the store with grads="gather"'
            )
        if grads is not None:
            for param, grad in zip(plans.params, plans.in_memory_order(aligned(plans, grads)), strict=True):
                if grad is not None:
                    _add_grad(param, grad)
        self._settle_all(plans.variables)
        clear_masked(self.registry)

    def collect(self, plans: PlanSet) -> Collected:
        touched = self._settle_all(plans.variables)
        return Collected(plans.gathered(self.stream, touched), touched, [None] * len(touched))

    def spend(self, plans: PlanSet, collected: Collected) -> None:
        """They stay, as torch leaves them."""

    @torch.no_grad()
    def zero(
        self, set_to_none: bool = True, variables: Sequence[Variable] | None = None, plans: PlanSet | None = None
    ) -> None:
        chosen = self.registry.variables if variables is None else variables
        trainable = [v for v in chosen if v.spec.trainable and not v.frozen]
        if set_to_none:
            for dtype, start, stop in self.registry.layout.stretches(v.index for v in trainable):
                self.stream(dtype)[start:stop].zero_()
            self._reset(trainable)
            return
        hits = self._settle_all(trainable)
        written = [v.param.grad for v in compress(trainable, hits) if v.param.grad is not None]
        if written:
            torch._foreach_zero_(written)

    # The stream ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read_stream(self, region: torch.dtype) -> Tensor:
        self.flush()
        return self.stream(region)

    @torch.no_grad()
    def flush(self) -> None:
        self.accumulate()

    def gathered(self, variables: Sequence[Variable]) -> list[Tensor | None]:
        return [self.of(variable) for variable in variables]

    def rewritten(self) -> None:
        """Nothing is known of the norm here."""

    # Whole ----------------------------------------------------------------------------------------------------------

    def snapshot(self) -> GradientSnapshot:
        trained = self.registry.trainable()
        return GradientSnapshot(self.mode, list(compress(trained, self._settle_all(trained))))

    @torch.no_grad()
    def restore(self, snapshot: GradientSnapshot, fetch: Fetch) -> None:
        self.zero(True)
        for variable in snapshot.open:
            view, _ = self._attached[variable.id]
            fetch(GRADS, variable, view)
            self._attached[variable.id] = (view, WRITTEN)


@torch.no_grad()
def _add_grad(param: Tensor, grad: Tensor) -> None:
    if param.grad is None:
        param.grad = grad.to(param.dtype)
    else:
        param.grad.add_(grad)
