"""Gradients as views: every `.grad` lies in the flat stream from the start, and autograd adds into it in place.

None is not zero: every view has a version counter of its own, and one that was written since it was reset has moved on.
No hook is needed to know.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ..memory.streams import GRADS, same_dtype
from ..variables.registry import Registry
from ..variables.variable import Variable

WRITTEN = -1  # a version that no view has: it counts as written


class GradViews:
    """The views of a registry's variables, and which of them hold a gradient."""

    def __init__(self, registry: weakref.ref[Registry]) -> None:
        self._registry = registry
        self._attached: dict[int, tuple[Tensor, int]] = {}  # by id: the view of a variable, its version when reset
        self._kept: set[int] = set()  # ids of the variables whose view was written before a carve

    def _view(self, variable: Variable) -> Tensor:
        registry = self._registry()
        assert registry is not None
        return registry.streams.get(GRADS, variable.dtype, same_dtype).view(variable.span).data

    def is_written(self, variable: Variable) -> bool:
        view, version = self._attached.get(variable.id, (None, 0))
        grad = variable.param.grad
        return grad is not None and (grad is not view or grad._version != version)

    def settle(self, variable: Variable) -> bool:
        """Whether the variable has a gradient; one that autograd or the user put elsewhere is taken into the stream."""
        if not self.is_written(variable):
            return False
        grad = variable.param.grad
        view, _ = self._attached.get(variable.id, (None, WRITTEN))
        if grad is not view and grad is not None:
            view = self._view(variable)
            view.copy_(grad.detach().to_dense() if grad.layout != torch.strided else grad.detach())
            variable.param.grad = view
            self._attached[variable.id] = (view, WRITTEN)
        return True

    def settle_all(self, variables: Sequence[Variable]) -> list[bool]:
        """The same for many."""
        found = []
        nothing = (None, WRITTEN)
        for variable in variables:
            view, version = self._attached.get(variable.id, nothing)
            grad = variable.param.grad
            # By far the most are what they should be: no call for those.
            found.append(grad._version != version if grad is view and grad is not None else self.settle(variable))
        return found

    def attach(self, variables: Sequence[Variable], written: set[int]) -> None:
        """Points every `.grad` into the stream; those of `written` variables count as written."""
        for variable in variables:
            view = self._view(variable)
            if variable.id in written and variable.param.grad is not None:
                view.copy_(variable.param.grad)
            else:
                view.zero_()  # what a Parameter that was replaced has left
            variable.param.grad = view
            self._attached[variable.id] = (view, WRITTEN if variable.id in written else view._version)

    def reset(self, variables: Sequence[Variable]) -> None:
        """Every `.grad` is its view again, and counts as not written."""
        for variable in variables:
            if variable.id not in self._attached:  # trained again since; it had room, so nothing was carved
                self.attach([variable], set())
            view, _ = self._attached[variable.id]
            if variable.param.grad is not view:
                variable.param.grad = view
            self._attached[variable.id] = (view, view._version)

    def mark_written(self, variable: Variable) -> None:
        """Counts the variable's view as written, also where it has no element to write."""
        view, _ = self._attached[variable.id]
        self._attached[variable.id] = (view, WRITTEN)

    def before_carve(self, variables: Sequence[Variable]) -> None:
        """Notes which views were written, while they can still be told: a change of dtype makes new tensors of them."""
        self._kept = {v.id for v in variables if self.is_written(v)}

    def after_carve(self, variables: Sequence[Variable]) -> None:
        """Spans moved, so views must be made anew; what was written stays written."""
        self._attached = {}  # those of frozen variables too, which lie in the old stream
        self.attach(variables, self._kept)
