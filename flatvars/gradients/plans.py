"""Plans of all regions for some variables: what a gradient store or an optimizer launches."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..backend import UNIT, Looks, Stored, all_in_memory_order, in_memory_order, make_plan
from ..memory.streams import FROZEN_ELEMENTS, VALUES
from ..variables.guard import AliasGuard
from ..variables.registry import Registry
from ..variables.variable import Variable
from .receipts import Receipt, ViewReceipt
from .repeats import HeldViews, Left, Repeats


@dataclass(frozen=True)
class Part:
    """One region's share, or one kind's in it: which of the variables it covers, in the order of its plan.

    Attributes:
        apart: Whether states of these variables are plain where those of others are of a format.
    """

    region: torch.dtype
    order: list[int]
    plan: Any
    in_order: bool
    kind: Any = None
    apart: bool = False

    def pick(self, items: Sequence[Any]) -> Sequence[Any]:
        """Items of all variables, reduced to this region's and put in its order."""
        return items if self.in_order else [items[i] for i in self.order]


def checked(plans_of: Callable[[], PlanSet], stepping: bool = False) -> PlanSet:
    """Plans over variables that lie in their store: looking may carve anew, which takes other plans.

    Raises:
        AliasError: see `AliasGuard.check`.
    """
    plans = plans_of()
    plans.guard.check(stepping)
    if plans.generation != plans.registry.generation:
        plans = plans_of()
        plans.guard.check(stepping)
    return plans


class PlanSet:
    """Plans over some trainable variables, one per region, sharing one norm.

    Args:
        groups: Row of each variable in the numbers that a step reads.
        slots: Row of each variable in the counts of steps.
        kinds: Of each variable; those of one region and different kinds get a plan each.
        apart: Of each, whether it is in a plan with others of which this is true.

    Attributes:
        norm: Of the gradients, a device scalar; float64 where a region is.
        left: What lies in `.grad` of each.
        guard: Over these variables: to be asked before anything is launched.
    """

    def __init__(
        self,
        registry: Registry,
        variables: Sequence[Variable],
        groups: Sequence[int] | None = None,
        slots: Sequence[int] | None = None,
        kinds: Sequence[Any] | None = None,
        apart: Sequence[bool] | None = None,
    ) -> None:
        # Weak: the registry keeps these plans through its gradients, and buffers must go with the last handle.
        self._registry = weakref.ref(registry)
        self.generation = registry.generation
        self.variables = list(variables)
        self.ids = [v.id for v in self.variables]
        self.params = [v.param for v in self.variables]
        self.left = Left(self.params)
        self.guard = AliasGuard(registry, self.variables, often=True)
        self.zeroed = False  # their gradients were, since the last step
        self.receipt: Receipt | ViewReceipt | None = None  # of the last step
        self.streams: list[Tensor] | None = None  # of the gathered gradients of each part, where they were asked for
        # Where gradients are views: these, what they cover of the streams, versions when zeroed, and at the last look.
        self.views: HeldViews | None = None
        self.pieces: list[Tensor] | None = None
        self.pointed: list[Any] | None = None  # what launches were told of these views
        self.versions: npt.NDArray[np.int64] | None = None
        self.latest: npt.NDArray[np.int64] | None = None
        regions = list(dict.fromkeys(v.dtype for v in self.variables)) or [torch.float32]
        wide = torch.float64 if torch.float64 in regions else torch.float32
        self.norm = torch.zeros((), dtype=wide, device=registry.device)
        marks = [None] * len(self.variables) if kinds is None else kinds
        plain = [False] * len(self.variables) if apart is None else apart
        shares = list(dict.fromkeys((v.dtype, *mark) for v, *mark in zip(self.variables, marks, plain, strict=True)))
        sums = torch.zeros(max(len(shares), 1), dtype=torch.float64, device=registry.device)
        self.parts: list[Part] = []
        for slot, (region, kind, alone) in enumerate(shares):
            members = [k for k, v in enumerate(self.variables) if v.dtype == region and marks[k] is kind]
            members = [k for k in members if plain[k] is alone]
            position = {self.variables[k].index: k for k in members}
            rows = [0 if groups is None else groups[k] for k in members]
            counts = None if slots is None else [slots[k] for k in members]
            indices, segments = registry.layout.segments([self.variables[k].index for k in members], rows, counts)
            order = [position[i] for i in indices]
            firsts = tuple(self.variables[k].first for k in order)
            # Of shards that begin with a unit of the whole: launches count from the first unit of that.
            units = tuple(unit - first // UNIT for unit, first in zip(segments.units, firsts, strict=True))
            segments = replace(segments, firsts=firsts, units=units)
            frozen = registry.streams.find(FROZEN_ELEMENTS, region)
            mask = None if frozen is None else frozen.buffer
            plan = make_plan(segments, registry.device, self.norm, sums, slot, mask)
            self.parts.append(Part(region, order, plan, order == list(range(len(self.variables))), kind, alone))
        self.repeats = Repeats(self.params, self.parts)
        self._placed: dict[Any, Stored] = {}
        self.lasting: dict[Any, Any] = {}  # what an optimizer keeps of its launches, by their plans

    @property
    def registry(self) -> Registry:
        registry = self._registry()
        assert registry is not None
        return registry

    @cached_property
    def padding(self) -> dict[torch.dtype, Tensor]:
        """Positions in the trainable part of each region that belong to no variable."""
        layout = self.registry.layout
        found = {}
        for part in self.parts:
            real = torch.zeros(layout.region_of[part.region].trainable_numel, dtype=torch.bool)
            for span in layout.spans:
                if span.spec.dtype == part.region and span.spec.has_room:
                    real[span.offset : span.offset + span.numel] = True
            found[part.region] = torch.nonzero(~real).squeeze(1).to(self.registry.device)
        return found

    @cached_property
    def _orders(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Shapes and strides of all variables."""
        specs = [v.spec for v in self.variables]
        return [spec.shape for spec in specs], [spec.stride for spec in specs]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all variables; who renames one makes other plans."""
        return tuple(v.name for v in self.variables)

    @cached_property
    def wholes(self) -> list[Tensor]:
        """What modules hold of all variables; whoever shards one makes other plans."""
        return [v.whole for v in self.variables]

    @cached_property
    def empty(self) -> list[int]:
        """Positions of the variables without elements."""
        return [k for k, v in enumerate(self.variables) if not v.spec.numel]

    @cached_property
    def all(self) -> list[bool]:
        """True for every variable; not to be changed."""
        return [True] * len(self.variables)

    @cached_property
    def counter(self) -> Looks:
        """By which the versions of all Parameters are counted."""
        return Looks(self.params)

    @cached_property
    def stretches(self) -> list[tuple[torch.dtype, int, int]]:
        """What the variables cover of the regions, in as few pieces as can be."""
        return self.registry.layout.stretches(v.index for v in self.variables)

    def covers(self, variables: Sequence[Variable]) -> bool:
        """Whether variables, of which these are some at least, are these and no more; and lie where they lay."""
        return len(self.ids) == len(variables) and self.generation == self.registry.generation

    def pending(self) -> list[Tensor | None]:
        """What autograd left: `.grad` of every parameter."""
        return [param.grad for param in self.params]

    def drop(self, grads: Sequence[Tensor | None]) -> None:
        """Makes `.grad` None where one of these was read from it.

        On a GPU its memory may belong to the stream of another backward pass, and must not be used again before the
        launch on this one has read it.
        """
        present = [(param, grad) for param, grad in zip(self.params, grads, strict=True) if grad is not None]
        if present and present[0][1].is_cuda:
            current = torch.cuda.current_stream(present[0][1].device)
            for _, grad in present:
                for tensor in (grad._indices(), grad._values()) if grad.is_sparse else (grad,):
                    tensor.record_stream(current)
        for param, _ in present:
            param.grad = None

    def clear(self, touched: Sequence[bool]) -> None:
        """Makes `.grad` None where there is one, on a CPU."""
        for param in compress(self.params, touched):
            param.grad = None

    def note(self, pending: Sequence[Tensor | None], touched: list[bool], zeroed: set[int]) -> None:
        """Keeps a receipt of the `.grad`s that a step has used.

        Args:
            pending: What lies in `.grad`; None where the gradient lies elsewhere, or there is none.
            touched: Which of these are gradients.
            zeroed: Variables whose gradients were zeroed; these are taken out.
        """
        last = self.receipt
        ends = (
            self.zeroed or (bool(zeroed) and zeroed.issuperset(self.ids)) or (last is not None and not last.is_alive())
        )
        if self.views is not None and self.latest is not None:
            self.receipt = ViewReceipt(self.views.views, self.latest, touched, ends)
        else:
            self.receipt = Receipt(pending, touched, ends)
        self.zeroed = False
        if zeroed:
            zeroed.difference_update(self.ids)

    def forget_views(self) -> None:
        """Spans moved: views are others, none of which the last step has used, and these would keep the old stream."""
        self.views = self.pieces = self.pointed = self.receipt = None

    def past(self) -> list[int]:
        """Ids of the variables whose `.grad` belongs to a cycle that a step has ended."""
        receipt = self.receipt
        if receipt is None or not receipt.ends or not receipt.holds(self.pending()):
            return []
        return list(compress(self.ids, receipt.touched))

    def scattered(self, grads: Sequence[Tensor | None]) -> list[Any]:
        return [part.plan.scattered(part.pick(grads)) for part in self.parts]

    def in_memory_order(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients as kernels want them; refuses those they cannot read before anything is written."""
        touched = [grad is not None for grad in grads]
        shapes, strides = (list(compress(which, touched)) for which in self._orders)
        if all_in_memory_order(list(compress(grads, touched)), shapes, strides):  # type: ignore[arg-type]
            return list(grads)
        specs = [v.spec for v in self.variables]
        return [
            None if grad is None else in_memory_order(spec.name, grad, spec.shape, spec.stride)
            for spec, grad in zip(specs, grads, strict=True)
        ]

    def gathered(self, streams: Callable[[torch.dtype], Tensor], touched: Sequence[bool]) -> list[Any]:
        return [part.plan.gathered(streams(part.region), part.pick(touched)) for part in self.parts]

    def viewed(self, streams: Callable[[torch.dtype], Tensor], told: Sequence[bool]) -> list[Any]:
        known = self.pointed
        if known is None or not all(
            part.plan.addresses.holds(each) for part, each in zip(self.parts, known, strict=True)
        ):
            self.pointed = [part.plan.viewed(streams(part.region), part.pick(told)) for part in self.parts]
            return self.pointed
        return known

    def written(self, sources: Sequence[Any]) -> list[bool]:
        """Which variables have a gradient, after the norm was launched. Synchronizes."""
        found = [False] * len(self.variables)
        for part, source in zip(self.parts, sources, strict=True):
            for k, hit in zip(part.order, part.plan.written(source).tolist(), strict=True):
                found[k] = hit
        return found

    def flags(self, sources: Sequence[Any]) -> Tensor:
        """The same for views, float64 [variables] on the device: launches the norm, and does not synchronize."""
        self.norm_(sources)
        flags = torch.zeros(len(self.variables), dtype=torch.float64, device=self.norm.device)
        for part, source in zip(self.parts, sources, strict=True):
            order = torch.tensor(part.order, dtype=torch.int64).to(flags.device, non_blocking=True)
            flags[order] = part.plan.written(source).to(torch.float64)
        return flags

    def upload_flags(self, touched: Sequence[bool]) -> Tensor:
        """Which variables have a gradient, float64 [variables] on the device."""
        return torch.tensor(touched, dtype=torch.float64).to(self.norm.device, non_blocking=True)

    def renew_norm(self) -> None:
        """Gives the next norm a tensor of its own: whoever was handed the last one keeps it as it is."""
        if not self.parts:  # nothing would write it: it stays 0
            return
        self.norm = torch.empty_like(self.norm)
        for part in self.parts:
            part.plan.write_norm_to(self.norm)

    def norm_(self, sources: Sequence[Any], grad_scale: Tensor | None = None) -> Tensor:
        """Takes the L2 norm over all regions, of gradients divided by `grad_scale` if given: one launch each."""
        for part, source in zip(self.parts, sources, strict=True):
            part.plan.norm_(source, grad_scale)
        return self.norm

    def values(self, part: Part) -> Stored:
        """The values of a part's region, as launches want them."""
        held = self.registry.streams.get(VALUES, part.region)
        if held.pieces is None:
            return held.stored
        if part.plan not in self._placed:
            chosen = [self.variables[k] for k in part.order]
            self._placed[part.plan] = held.stored_at([v.span for v in chosen], [v.first for v in chosen])
        return self._placed[part.plan]

    def _numbers(self, part: Part) -> Tensor:
        held = self.registry.streams.get(VALUES, part.region)
        return held.numbers(self.variables[k].span for k in part.order)

    def variable_norms(self, sources: Sequence[Any] | None, order: float, values: bool) -> tuple[Tensor, Tensor]:
        """Norms of every variable's value and gradient, [variables] each: one launch a region."""
        out = torch.zeros((len(self.variables), 2), dtype=self.norm.dtype, device=self.norm.device)
        for k, part in enumerate(self.parts):
            stream = self._numbers(part) if values else None
            norms = part.plan.variable_norms(stream, None if sources is None else sources[k], order)
            if part.in_order:
                out = norms.to(out.dtype)
            else:
                out[torch.tensor(part.order, device=out.device)] = norms.to(out.dtype)
        return out[:, 0], out[:, 1]
