"""Gradients that stay where autograd leaves them, and are gathered into the flat stream by `accumulate`.

Norm and step read `.grad` through an address table: no gradient buffer exists, and everything users do to `.grad` keeps
its meaning. `accumulate()` moves gradients into the flat stream instead (float32 for low-precision variables), which is
how micro-batches add up in full precision; `.grad` is None afterwards. A step ends the cycle of its variables: what is
accumulated next overwrites their gradients, as if they had been zeroed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import compress
from operator import is_, is_not
from typing import ClassVar

import torch
from torch import Tensor

from ..backend import Sources
from ..memory.grad_mode import unwatched
from ..memory.streams import FROZEN_ELEMENTS, GRADS, normal_tensors
from ..variables.registry import Registry
from ..variables.variable import Variable
from .cycle import PENDING, Collected, FetchGradient, Given, Gradients, GradientSnapshot, Mode, State
from .given import aligned
from .known_norm import KnownNorm
from .overlap import Put
from .plans import PlanSet, checked

exists = partial(is_not, None)


def at_least_float32(region: torch.dtype) -> torch.dtype:
    """dtype of gathered gradients: sums of micro-batches lose nothing to a narrow type."""
    return region if region.itemsize > 4 else torch.float32


class Gathered(Gradients):
    """See above. A variable's state is that of what the stream holds; `.grad` is open beside it."""

    mode: ClassVar[Mode] = "gather"

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._open: set[int] = set()
        self._spent: set[int] = set()
        # Empty variables whose spans may hold something else than zeros; written only when someone will read them.
        self._unswept: set[int] = set()
        self._norm = KnownNorm()

    def dtype_of(self, region: torch.dtype) -> torch.dtype:
        return at_least_float32(region)

    def _is_open(self, variable: Variable) -> bool:
        return variable.id in self._open

    def _is_spent(self, variable: Variable) -> bool:
        return variable.id in self._spent

    def after_carve(self) -> None:
        self.rewritten()
        self._norm.exposed = self._norm.lent = False  # what was handed out is another memory now
        room = {v.id for v in self.registry.variables if v.spec.has_room}
        self._open &= room
        self._spent &= room
        self._unswept &= room

    # One variable -------------------------------------------------------------------------------------------------

    @unwatched
    def of(self, variable: Variable) -> Tensor | None:
        pending, state = variable.param.grad, self.state(variable)
        if state is State.EMPTY:
            return pending
        if pending is None:
            self._norm.lent = True
            return self._lying(variable)
        if state is State.SPENT:
            return pending
        # What a step would use, in a tensor of its own: looking must not gather, a scale may still come.
        frozen = self.registry.streams.find(FROZEN_ELEMENTS, variable.dtype)
        if frozen is not None:
            pending = pending.masked_fill(frozen.view(variable.span).view(torch.bool), 0.0)
        return self._lying(variable) + pending

    def _lying(self, variable: Variable) -> Tensor:
        stream = self.registry.streams.get(GRADS, variable.dtype, at_least_float32)
        return stream.view(variable.span)

    @unwatched
    def add(self, variable: Variable, grad: Tensor) -> None:
        self.check_unsent("adding to a gradient")
        if self.state(variable) is State.OPEN:
            self._lying(variable).add_(grad.to(self.registry.device))
            self._norm.forget()
            return
        own = grad.detach().to(variable.param.device, variable.param.dtype, copy=True)
        if variable.param.grad is None:
            variable.param.grad = own
        else:
            variable.param.grad.add_(own)

    @unwatched
    def release(self, variables: Sequence[Variable]) -> None:
        self.check_unsent("removing variables")
        for variable in variables:
            if self.state(variable) is State.OPEN and tuple(variable.param.shape) == variable.spec.shape:
                grad = self.of(variable)
                variable.param.grad = None if grad is None else grad.to(variable.dtype, copy=True)
        leaving = {variable.id for variable in variables}
        self._open, self._spent, self._unswept = self._open - leaving, self._spent - leaving, self._unswept - leaving
        self._norm.forget()

    def hide_empty(self) -> None:
        """`.grad` is None there anyhow."""

    # The cycle ----------------------------------------------------------------------------------------------------

    @unwatched
    def accumulate(self, grads: Given = None, scale: float = 1.0) -> None:
        self.check_unsent("accumulate()")
        plans = checked(self.plans)
        # On a GPU, who drops a gradient must hold it in hand: its memory may belong to another stream.
        on_cpu = self.registry.device.type == "cpu"
        told = plans.repeats.take() if grads is None and on_cpu else None
        given: Sequence[Tensor | None] = plans.left if told is not None else self._given(plans, grads)
        if grads is not None and on_cpu:
            told = plans.repeats.take_given(given)
        # What no kernel can read is refused before anything is changed.
        sources, touched, held = (*told, given) if told else self._tell(plans, given, from_grad=grads is None)
        if told is None and grads is not None and on_cpu and all(map(is_, held, given)):
            plans.repeats.note_given(sources, touched, given)
        if not any(touched):
            return
        self._forget(self._spent.intersection(plans.ids))
        self._gather(plans, sources, touched, scale)
        if grads is None and told is not None:
            plans.clear(touched)
        elif grads is None:
            plans.drop(given)

    @staticmethod
    def _given(plans: PlanSet, grads: Given) -> Sequence[Tensor | None]:
        return plans.pending() if grads is None else aligned(plans, grads)

    @staticmethod
    def _tell(
        plans: PlanSet, given: Sequence[Tensor | None], from_grad: bool
    ) -> tuple[list[Sources], list[bool], Sequence[Tensor | None]]:
        """What launches are told of gradients, looked at one by one; which these are; and what they must find alive."""
        touched = list(map(exists, given))
        if not any(touched):
            return [], touched, given
        ready = plans.in_memory_order(given)
        sources = plans.scattered(ready)
        if from_grad and all(map(is_, ready, given)):
            plans.repeats.note(sources, touched)
        return sources, touched, ready

    def _gather(self, plans: PlanSet, sources: Sequence[Sources], touched: list[bool], scale: float) -> None:
        """Takes gradients of the store's plans into the stream: one launch a region, and the norm on the way."""
        held = self._open | self._spent
        add = not held.isdisjoint(plans.ids)
        if add:
            self._sweep(plans.variables)
        self._unswept.difference_update(plans.ids)
        plans.renew_norm()
        for part, source, stream in zip(plans.parts, sources, self._streams(plans), strict=True):
            part.plan.accumulate_(source, stream, float(scale), add)
        self._open.update(compress(plans.ids, touched))
        self._note_norm(plans)

    def collect(self, plans: PlanSet) -> Collected:
        if self.overlap is not None:
            self.check_unsent("a norm")
        simple = not self._open and not self._spent
        if simple and (told := plans.repeats.take()) is not None:
            return Collected(*told, plans.left)
        pending: Sequence[Tensor | None] = plans.pending()
        touched = list(map(exists, pending))
        if simple:
            sources = plans.scattered(pending)
            plans.repeats.note(sources, touched)
            return Collected(sources, touched, pending)
        if any(touched):
            # A new cycle of these variables: the stream's spent ones are those of the step before.
            self._forget(self._spent.intersection(plans.ids))
            pending = self._join(plans, pending)
        held = [key in self._open or key in self._spent for key in plans.ids]
        if all(grad is None for grad in pending):
            used = set(compress(plans.ids, held))
            norm = self.plans().norm if self._has_norm_of(used) else None
            return Collected(plans.gathered(self.stream, held), held, pending, any(held), norm)
        places = zip(plans.variables, pending, held, strict=True)
        mixed = [self._lying(variable) if lies else grad for variable, grad, lies in places]
        return Collected(plans.scattered(mixed), [grad is not None for grad in mixed], pending, any(held))

    def flat(self, plans: PlanSet, collected: Collected, grad_scale: Tensor | None = None) -> dict[torch.dtype, Tensor]:
        held, waiting = (
            collected.gathered,
            [key for key, g in zip(plans.ids, collected.pending, strict=True) if exists(g)],
        )
        if held:
            self._sweep(plans.variables)
        if waiting or not held:
            ready = plans.in_memory_order(collected.pending)
            for part in plans.parts:
                part.plan.accumulate_(part.pick(ready), self.stream(part.region), 1.0, held)
            # It lies in `.grad` still: what the stream has is nobody's gradient.
            self._unswept.difference_update(plans.ids if not held else ())
            self._unswept.update(waiting)
        streams = {part.region: self.stream(part.region) for part in plans.parts}
        for stream in streams.values() if grad_scale is not None else ():
            stream.mul_(1.0 / grad_scale)  # type: ignore[operator]  # none is held under a scaler: it is scratch
        return streams

    def sent(self, plans: PlanSet, touched: list[bool]) -> Collected:
        return Collected([], touched, plans.pending(), bool(self._open))

    @torch.no_grad()
    def before_put(self) -> None:
        self._norm.forget()
        self._forget(self._spent)
        if self._open:
            self._sweep(self.plans().variables)

    @torch.no_grad()
    def put(self, plans: PlanSet) -> Put:
        pending = plans.pending()
        ready = plans.in_memory_order(pending)
        for part in plans.parts:
            part.plan.accumulate_(part.pick(ready), self.stream(part.region), 1.0, bool(self._open))
        if not self._open:
            self._unswept.update(plans.ids)  # an average takes their place
            touched = list(map(exists, pending))
            return Put(touched, plans.upload_flags(touched), pending)
        held = [key in self._open for key in plans.ids]
        self._unswept.update(key for key, lies in zip(plans.ids, held, strict=True) if not lies)
        plans.drop([grad if lies else None for grad, lies in zip(pending, held, strict=True)])
        touched = [lies or grad is not None for grad, lies in zip(pending, held, strict=True)]
        left = [None if lies else grad for grad, lies in zip(pending, held, strict=True)]
        return Put(touched, plans.upload_flags(touched), left)

    def _join(self, plans: PlanSet, pending: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Adds what is pending of open variables to what the stream holds of them; returns what is pending still."""
        both = {
            key: grad for key, grad in zip(plans.ids, pending, strict=True) if grad is not None and key in self._open
        }
        if not both:
            return pending
        whole = self.plans()
        given = [both.get(key) for key in whole.ids]
        sources, touched, _held = self._tell(whole, given, from_grad=False)
        self._gather(whole, sources, touched, 1.0)
        plans.drop([both.get(key) for key in plans.ids])
        return [None if key in both else grad for key, grad in zip(plans.ids, pending, strict=True)]

    def _note_norm(self, plans: PlanSet) -> None:
        """The norm of the store's plans is that of all their variables that the stream holds now."""
        held = (self._open | self._spent).intersection(plans.ids)
        self._norm.note(plans, held, self._streams(plans))

    def _has_norm_of(self, used: set[int]) -> bool:
        """Whether it is known, of just these variables."""
        plans = self._plans
        return plans is not None and self._norm.holds(used, self._streams(plans), self.registry.generation)

    def _streams(self, plans: PlanSet) -> list[Tensor]:
        """Of the parts of the store's plans, which a carve ends."""
        if plans.streams is None:
            plans.streams = [self.stream(part.region) for part in plans.parts]
        return plans.streams

    def known_norm(self, plans: PlanSet) -> Tensor | None:
        self.check_unsent("a norm")
        if plans is not self._plans or any(map(exists, plans.pending())):
            return None
        used = (self._open | self._spent).intersection(plans.ids)
        return plans.norm if used and self._has_norm_of(used) else None

    def norm_for(self, plans: PlanSet, collected: Collected, grad_scale: Tensor | None = None) -> Tensor:
        if plans is self._plans and collected.norm is None:
            self._norm.forget()
            plans.renew_norm()
        return super().norm_for(plans, collected, grad_scale)

    def spend(self, plans: PlanSet, collected: Collected) -> None:
        if self.overlap is not None:
            self.overlap.used()
            self._forget(self._open.intersection(plans.ids))  # averages lie in their place
        if self._open:
            used = self._open.intersection(compress(plans.ids, collected.touched))
            self._open -= used
            self._spent |= used
        self._keep_receipt(plans, collected)

    @unwatched
    def zero(
        self, set_to_none: bool = True, variables: Sequence[Variable] | None = None, plans: PlanSet | None = None
    ) -> None:
        chosen = self.registry.variables if variables is None else variables
        if self.overlap is not None:
            self.overlap.zeroed([v.id for v in chosen])
        if not set_to_none:
            self._zero_in_place([v for v in chosen if v.trains])
            return
        if plans is not None and plans.covers(chosen):
            plans.zeroed = True
            params, ids = plans.params, plans.ids
        else:
            params, ids = [v.param for v in chosen], [v.id for v in chosen]
            self._zeroed.update(ids)
        for param in params:
            param.grad = None
        if self._open or self._spent:
            self._forget(ids)

    def _zero_in_place(self, variables: Sequence[Variable]) -> None:
        pending = [v.param.grad for v in variables if v.param.grad is not None]
        if pending:
            torch._foreach_zero_(pending)
        held = [v for v in variables if self.state(v) is not State.EMPTY]
        if held:
            self._write_zeros(held)
            self._open.update(v.id for v in held)
            self._spent.difference_update(v.id for v in held)
            self._norm.forget()

    def _forget(self, ids: Iterable[int]) -> None:
        """Makes gradients of the stream empty; no byte is written before someone reads it."""
        gone = (self._open | self._spent).intersection(ids)
        self._open -= gone
        self._spent -= gone
        self._unswept |= gone

    # The stream ---------------------------------------------------------------------------------------------------

    @unwatched
    def read_stream(self, region: torch.dtype) -> Tensor:
        self.check_unsent("reading the flat gradients")
        self.flush()
        self._sweep(self.registry.variables)
        self._norm.exposed = True
        return self.stream(region)

    @unwatched
    def flush(self) -> None:
        self.check_unsent("clipping")
        if any(v.param.grad is not None for v in self.registry.trained()):
            self.accumulate()

    def gathered(self, variables: Sequence[Variable]) -> list[Tensor | None]:
        return [None if self.state(v) is State.EMPTY else self._lying(v) for v in variables]

    def rewrite(self, operation: Callable[[list[Tensor]], object]) -> None:
        plans = self.plans()
        streams = [self.stream(part.region) for part in plans.parts]
        operation(streams)
        for part, stream in zip(plans.parts, streams, strict=True):
            # NaN times zero is NaN between variables as well, and that counts in no norm.
            stream.index_fill_(0, plans.padding[part.region], 0.0)
        self.rewritten()

    def rewritten(self) -> None:
        self._norm.forget()
        held = self._open | self._spent
        self._unswept.update(v.id for v in self.registry.variables if v.spec.has_room and v.id not in held)

    def _sweep(self, variables: Sequence[Variable]) -> None:
        """Makes zeros of what empty variables have left."""
        if self._unswept:
            self._write_zeros([v for v in variables if v.id in self._unswept])
            self._unswept.difference_update([v.id for v in variables])

    def _write_zeros(self, variables: Sequence[Variable]) -> None:
        """One launch for each stretch of neighbors: for all variables, one a region."""
        for dtype, start, stop in self.registry.layout.stretches(v.index for v in variables):
            self.stream(dtype)[start:stop].zero_()

    # Whole ----------------------------------------------------------------------------------------------------------

    def snapshot(self) -> GradientSnapshot:
        self.check_unsent("a snapshot")
        variables = self.registry.variables
        past = self._past()
        opened = [v for v in variables if v.id in self._open]
        pending = [v for v in variables if v.param.grad is not None and v.id not in past]
        return GradientSnapshot(self.mode, opened, pending, self._has_norm_of({v.id for v in opened}))

    @unwatched
    def restore(self, snapshot: GradientSnapshot, fetch: FetchGradient) -> None:
        self.zero(True)
        regions = {variable.dtype for variable in snapshot.open}
        for region in regions:
            self.stream(region).zero_()  # made here, where no step has made it yet
        self._unswept.difference_update(v.id for v in self.registry.variables if v.dtype in regions)
        for variable in snapshot.open:
            fetch(GRADS, variable, self.registry.view(GRADS, variable))
        for variable in snapshot.pending:
            with normal_tensors():
                grad = torch.empty_like(variable.param)
            fetch(PENDING, variable, grad)
            variable.param.grad = grad
        self._open = {variable.id for variable in snapshot.open}
        self._norm = KnownNorm()
        if snapshot.norm and snapshot.open:
            # Adding nothing takes the norm by the very launch that took it before.
            plans = self.plans()
            plans.renew_norm()
            for part in plans.parts:
                part.plan.accumulate_([None] * len(part.order), self.stream(part.region), 1.0, True)
            self._note_norm(plans)
