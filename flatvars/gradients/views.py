"""Gradients as views: every `.grad` lies in the flat stream from the start, and autograd adds into it in place.

A variable without a gradient has a view all the same. Its elements are -0.0 (`sentinel.py`), and the launch that takes
the norm finds out on the device which variables were written: in this mode it always runs. What users do in place to
all gradients at once is no gradient then, and nothing is read per variable but `.grad` itself: autograd puts a tensor
of its own there where it builds a graph of gradients or finds None, DDP its bucket, a user whatever they like. Such
strays are taken in at the next step, save or look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import GradientError
from ..memory.grad_mode import unwatched
from ..memory.streams import GRADS
from ..variables.binding import is_bound
from ..variables.registry import Registry
from ..variables.variable import Variable
from .cycle import Collected, FetchGradient, Given, Gradients, GradientSnapshot, Mode
from .given import aligned
from .masks import clear_masked
from .overlap import Put
from .plans import PlanSet, checked
from .repeats import HeldViews
from .sentinel import UNWRITTEN, is_written, keep_marks


class Views(Gradients):
    """See above."""

    mode: ClassVar[Mode] = "views"

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._views: dict[int, Tensor] = {}  # by id
        # Version of each view when its variable was zeroed. One that has not moved since has no gradient; one that has
        # may have none all the same. So this is only for what need not be exact, the version counters of Parameters,
        # and for variables without elements, of which no launch can tell.
        self._versions: dict[int, int] = {}

    def dtype_of(self, region: torch.dtype) -> torch.dtype:
        return region

    def stream(self, region: torch.dtype) -> Tensor:
        if self.registry.streams.find(GRADS, region) is None:
            super().stream(region).fill_(UNWRITTEN)
        return super().stream(region)

    # Views ----------------------------------------------------------------------------------------------------------

    def _attach(self, variables: Sequence[Variable]) -> None:
        """Makes views for variables whose part of the stream holds anything; what `.grad` holds is their gradient."""
        for variable in variables:
            self.stream(variable.dtype)  # made here, where it is not there yet
            self._views[variable.id] = self.registry.view(GRADS, variable)
        self._take_in([(variable, variable.param.grad) for variable in variables])

    def _settle(self) -> None:
        """Takes in what lies elsewhere, of all variables: one may hold the view of another."""
        mine = [v for v in self.registry.variables if v.id in self._views and not v.frozen]
        if any(map(self._is_converted, mine)):  # no view of this stream can be their `.grad`: the carve makes another
            self.registry.guard.check_memory()
            mine = [v for v in self.registry.variables if v.id in self._views and not v.frozen]
        away = [v for v in mine if not self._is_there(v)]
        strays = [(v, None if self._is_bare(v) else v.param.grad) for v in away]
        if away and self.overlap is not None:
            self.overlap.overwritten(away[0])
        for variable in away:
            if variable.param.grad is self._views[variable.id]:  # whose own memory was replaced
                self._views[variable.id] = self.registry.view(GRADS, variable)
        self._part(v for v in self.registry.variables if v.frozen or v.id not in self._views)
        self._take_in(strays)

    def _part(self, variables: Iterable[Variable]) -> None:
        """Gives variables without a view memory of their own for a gradient that lies where another's does."""
        inside = self._storages()
        for variable in variables:
            grad = variable.param.grad
            if grad is None or grad is self._views.get(variable.id):
                continue
            if _lies_in(grad, inside):
                variable.param.grad = None if self._is_empty(grad) else grad.detach().clone()

    def _storages(self) -> set[int]:
        """Addresses of the streams."""
        streams = (self.registry.streams.find(GRADS, region.dtype) for region in self.registry.layout.regions)
        return {stream.buffer.untyped_storage().data_ptr() for stream in streams if stream is not None}

    def _is_converted(self, variable: Variable) -> bool:
        """Whether a module converted the Parameter, and the store has not followed yet."""
        return (variable.param.dtype, variable.param.device) != (variable.spec.dtype, self.registry.device)

    def _is_bare(self, variable: Variable) -> bool:
        """Whether a variable has no elements that could say so, and nobody wrote its view, wherever that lies now."""
        view = self._views[variable.id]
        untouched = variable.param.grad is view and view._version == self._versions[variable.id]
        return untouched and not variable.spec.numel

    def _is_there(self, variable: Variable) -> bool:
        """Whether `.grad` is the variable's view, in the stream: `.grad.data = ...` and `module.double()` move it."""
        view = self._views[variable.id]
        return variable.param.grad is view and is_bound(view, self.registry.view(GRADS, variable))

    def _settle_plans(self, plans: PlanSet, stepping: bool = False) -> HeldViews:
        """The same for the variables of some plans; returns their views, made where a variable trains again.

        Args:
            stepping: The plans' `latest` versions are wanted.
        """
        if plans.views is None:
            self._attach([v for v in plans.variables if v.id not in self._views])
        views = self._note(plans) if plans.views is None else plans.views
        versions = np.empty(len(plans.ids), dtype=np.int64) if stepping else None
        if not views.are_there(versions, plans.versions):
            self._settle()
            views = self._note(plans)
            there = views.are_there(versions, plans.versions)
            assert there
        if versions is not None:
            plans.latest = versions
        return views

    def _note(self, plans: PlanSet) -> HeldViews:
        """Which views the plans have, and where they lie."""
        plans.views = HeldViews(plans.params, [self._views[key] for key in plans.ids])
        plans.pieces = plans.pointed = None
        plans.versions = None
        return plans.views

    def _take_in(self, strays: Sequence[tuple[Variable, Tensor | None]]) -> None:
        """Copies gradients into the stream and makes their views `.grad` again; None is none."""
        # A `.grad` may have been handed on, or two swapped, or be one: all are read before the first is written.
        inside = self._storages()
        present = [(variable, _detached(grad, inside)) for variable, grad in strays if grad is not None]
        gone = [variable for variable, grad in strays if grad is None]
        self._erase(gone)
        self._zeroed.update(variable.id for variable in gone)
        for variable, copy in present:
            view = self._views[variable.id]
            view.copy_(copy)
            variable.param.grad = view
            self._versions[variable.id] = view._version - 1
        self._look_again()

    def _look_again(self, but: PlanSet | None = None) -> None:
        """Versions were noted anew: what plans, but for one, know of them is old."""
        for plans in (self._plans, *self._stepped):
            if plans is not None and plans is not but:
                plans.versions = None

    def _erase(self, variables: Sequence[Variable]) -> None:
        """Makes the variables' views, which are `.grad` again, as if nobody had written them."""
        self._fill(self.registry.layout.stretches(variable.index for variable in variables))
        for variable in variables:
            view = self._views[variable.id]
            variable.param.grad = view
            self._versions[variable.id] = view._version

    def _fill(self, stretches: Sequence[tuple[torch.dtype, int, int]]) -> None:
        for dtype, start, stop in stretches:
            self.stream(dtype)[start:stop].fill_(UNWRITTEN)

    def _moved(self, plans: PlanSet) -> list[bool]:
        """Whose view has moved on since it was zeroed, as the last look at them found."""
        if plans.views is not None and plans.views.all_moved:
            return plans.all
        if plans.versions is None:
            plans.versions = np.array([self._versions[key] for key in plans.ids], dtype=np.int64)
        moved: list[bool] = (plans.versions != plans.latest).tolist()
        return moved

    def before_carve(self) -> None:
        super().before_carve()
        for variable in self.registry.variables:
            if variable.id in self._views and not variable.frozen:
                stream, param = self.stream(variable.dtype), variable.param
                if (param.dtype, param.device) != (stream.dtype, stream.device):
                    # The carve is about to follow a Parameter of another dtype: its gradient is exact in `.grad` alone.
                    if self._is_bare(variable):
                        variable.param.grad = None
                    del self._views[variable.id]
        self._settle()

    def after_carve(self) -> None:
        """All gradients lay in the stream, which has moved along where there is room still."""
        before, self._views = self._views, {}
        for plans in self._stepped:
            plans.forget_views()
        fresh = []
        for variable in self.registry.variables:
            old = before.get(variable.id)
            if variable.frozen and (variable.param.grad is None or variable.param.grad is not old):
                continue  # what was kept of its gradient, if it was, waits in `.grad`
            if not variable.spec.has_room:
                if old is not None and variable.param.grad is old:
                    variable.param.grad = None  # it would keep the old stream
            elif old is None:
                if not self._is_converted(variable):  # its gradient waits in `.grad` until the store follows
                    fresh.append(variable)
            else:
                moved = old._version != self._versions[variable.id]
                self._views[variable.id] = view = self.registry.view(GRADS, variable)
                variable.param.grad = view
                self._versions[variable.id] = view._version - moved
        self._attach(fresh)

    # One variable -------------------------------------------------------------------------------------------------

    @unwatched
    def of(self, variable: Variable) -> Tensor | None:
        view, grad = self._views.get(variable.id), variable.param.grad
        if view is None or (variable.frozen and grad is not view):
            return None if grad is not None and self._is_empty(grad) else grad
        if not self._is_there(variable):
            self._settle()
            view = self._views[variable.id]
        if not variable.spec.numel:
            return view if view._version != self._versions[variable.id] else None
        return view if is_written(view) else None

    def _is_empty(self, grad: Tensor) -> bool:
        """Whether this is the view of some variable, put elsewhere, and nobody wrote it."""
        return any(grad is view for view in self._views.values()) and not is_written(grad)

    @unwatched
    def add(self, variable: Variable, grad: Tensor) -> None:
        self.check_unsent("adding to a gradient")
        own = grad.detach().to(variable.param.device, variable.param.dtype)
        if variable.param.grad is None:
            variable.param.grad = own.clone()
        else:
            variable.param.grad.add_(own)

    @unwatched
    def release(self, variables: Sequence[Variable]) -> None:
        self.check_unsent("removing variables")
        for variable in variables:
            if tuple(variable.param.shape) != variable.spec.shape:
                self._views.pop(variable.id, None)
        for variable in variables:
            if variable.id in self._views:
                grad = self.of(variable)
                variable.param.grad = None if grad is None else grad.clone()
                self._views.pop(variable.id)

    @unwatched
    def hide_empty(self) -> None:
        plans = self.plans()
        for param, hit in zip(plans.params, self.hits(plans, self.collect(plans)), strict=True):
            if not hit:
                param.grad = None

    def _is_open(self, variable: Variable) -> bool:
        return self.of(variable) is not None and variable.id not in self._past()

    def _is_spent(self, variable: Variable) -> bool:
        return self.of(variable) is not None and variable.id in self._past()

    # The cycle ----------------------------------------------------------------------------------------------------

    @unwatched
    def accumulate(self, grads: Given = None, scale: float = 1.0) -> None:
        self.check_unsent("accumulate()")
        plans = checked(self.plans)
        if scale != 1.0:
            raise GradientError(
                f"accumulate(scale={scale}) cannot scale gradients that autograd already added in place; "
                'scale the loss, or make the store with grads="gather"'
            )
        given = [] if grads is None else plans.in_memory_order(aligned(plans, grads))
        for view, grad in zip(self._settle_plans(plans).views, given, strict=False):
            if grad is not None:
                view.add_(grad)
        clear_masked(self.registry)

    def collect(self, plans: PlanSet) -> Collected:
        if self.overlap is not None:
            self.check_unsent("a norm")
        views = self._settle_plans(plans, stepping=True)
        moved = self._moved(plans)
        return Collected(plans.viewed(self.stream, moved), moved, views.views, unseen=True)

    def sent(self, plans: PlanSet, touched: list[bool]) -> Collected:
        views = self._note(plans) if plans.views is None else plans.views
        versions = np.empty(len(plans.ids), dtype=np.int64)
        if views.are_there(versions):  # else the step finds out that they are others than those that were sent
            plans.latest = versions
        return Collected([], touched, views.views, unseen=True)

    @torch.no_grad()
    def before_put(self) -> None:
        self._settle_plans(self.plans())

    @torch.no_grad()
    def put(self, plans: PlanSet) -> Put:
        views = self._note(plans) if plans.views is None else plans.views
        if not views.are_there():  # of these alone: what others hold may have been sent
            self._take_in([(v, v.param.grad) for v in plans.variables if not self._is_there(v)])
            views = self._note(plans)
        moved = [view._version != self._versions[key] for key, view in zip(plans.ids, views.views, strict=True)]
        return Put(moved, plans.flags(plans.viewed(self.stream, moved)), views.views)

    def hits(self, plans: PlanSet, collected: Collected) -> list[bool]:
        self.norm_for(plans, collected)
        return plans.written(collected.sources)

    def flat(self, plans: PlanSet, collected: Collected, grad_scale: Tensor | None = None) -> dict[torch.dtype, Tensor]:
        streams = {part.region: self.stream(part.region) for part in plans.parts}
        if grad_scale is None:
            return streams
        return {region: stream * (1.0 / grad_scale) for region, stream in streams.items()}

    def spend(self, plans: PlanSet, collected: Collected) -> None:
        self._keep_receipt(plans, collected)
        if self.overlap is not None:  # averages lie in their place
            self.overlap.used()
            self.zero(True, plans.variables, plans)

    @unwatched
    def zero(
        self, set_to_none: bool = True, variables: Sequence[Variable] | None = None, plans: PlanSet | None = None
    ) -> None:
        chosen = self.registry.variables if variables is None else variables
        if self.overlap is not None:
            self.overlap.zeroed([v.id for v in chosen])
        if not set_to_none:
            self._settle()
            self._write_zeros([v for v in chosen if v.id in self._views and not v.frozen])
        elif plans is not None and plans.covers(chosen):
            self._zero_plans(plans, chosen)
        else:
            self._settle()
            for variable in chosen:
                if variable.id not in self._views or variable.frozen:
                    variable.param.grad = None
            self._erase([v for v in chosen if v.id in self._views and not v.frozen])
            self._zeroed.update(v.id for v in chosen)
            self._look_again()

    def _zero_plans(self, plans: PlanSet, variables: Sequence[Variable]) -> None:
        """The same without a turn for each variable but where `.grad` is no view."""
        views = self._settle_plans(plans).views
        if plans.generation != self.registry.generation:  # the store followed a conversion, and carved
            self.zero(True, variables)
            return
        for piece in self._pieces(plans):
            piece.fill_(UNWRITTEN)
        self._note_zeroed(plans, views)

    def _pieces(self, plans: PlanSet) -> list[Tensor]:
        """What the variables cover of the streams."""
        if plans.pieces is None:
            plans.pieces = [self.stream(dtype)[start:stop] for dtype, start, stop in plans.stretches]
        return plans.pieces

    def clears(self, plans: PlanSet, variables: Sequence[Variable]) -> bool:
        """Not where ranks exchange gradients: their launches read averages, and each has a range alone."""
        return self.registry.group is None and plans.covers(variables)

    def cleared(self, plans: PlanSet) -> None:
        assert plans.views is not None
        torch.autograd.graph.increment_version(self._pieces(plans))  # as `fill_` does
        self._note_zeroed(plans, plans.views.views)

    def _note_zeroed(self, plans: PlanSet, views: Sequence[Tensor]) -> None:
        plans.zeroed, plans.versions = True, plans.latest
        if plans.empty and plans.versions is not None:
            plans.versions = plans.versions.copy()  # the receipt of the last step has these
        for k in plans.empty:
            self._versions[plans.ids[k]] = version = views[k]._version
            if plans.versions is not None:
                plans.versions[k] = version
        if plans.empty:
            self._look_again(but=plans)

    def _write_zeros(self, variables: Sequence[Variable]) -> None:
        """Makes zeros of gradients; those that are none stay none."""
        stretches = self.registry.layout.stretches(variable.index for variable in variables)
        keep_marks([self.stream(dtype)[start:stop] for dtype, start, stop in stretches], torch._foreach_zero_)
        # The stream counts for itself: whoever knows the gradients by their versions must see that these are others.
        views = [(self._views[variable.id], self._versions[variable.id]) for variable in variables]
        torch.autograd.graph.increment_version([view for view, version in views if view._version != version])

    # The stream ---------------------------------------------------------------------------------------------------

    @unwatched
    def read_stream(self, region: torch.dtype) -> Tensor:
        self.check_unsent("reading the flat gradients")
        self.flush()
        return self.stream(region)

    def flush(self) -> None:
        self.accumulate()

    def gathered(self, variables: Sequence[Variable]) -> list[Tensor | None]:
        return [self._views.get(variable.id) for variable in variables]

    def rewrite(self, operation: Callable[[list[Tensor]], object]) -> None:
        keep_marks([self.stream(part.region) for part in self.plans().parts], operation)

    def rewritten(self) -> None:
        """No norm is kept here, and what has no gradient says so itself."""

    # Whole ----------------------------------------------------------------------------------------------------------

    @unwatched
    def snapshot(self) -> GradientSnapshot:
        self.check_unsent("a snapshot")
        plans = self.plans()
        found, past = compress(plans.variables, self.hits(plans, self.collect(plans))), self._past()
        return GradientSnapshot(self.mode, [variable for variable in found if variable.id not in past])

    @unwatched
    def restore(self, snapshot: GradientSnapshot, fetch: FetchGradient) -> None:
        self.zero(True)
        for variable in snapshot.open:
            view = self._views[variable.id]
            fetch(GRADS, variable, view)
            self._versions[variable.id] = view._version - 1


def _lies_in(grad: Tensor, storages: set[int]) -> bool:
    return grad.layout == torch.strided and grad.untyped_storage().data_ptr() in storages


def _detached(grad: Tensor, inside: set[int]) -> Tensor:
    """A gradient as a dense tensor that stays as it is while the stream is written."""
    dense = grad.detach() if grad.layout == torch.strided else grad.detach().to_dense()
    return dense.clone() if _lies_in(dense, inside) else dense
