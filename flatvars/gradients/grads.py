"""Gradients: where they lie, which variables have one, and what is taken of them before a step.

Autograd leaves a gradient per parameter in `.grad`. In the default mode ("gather") those stay where they are, and norm
and step read them through a pointer table: no gradient buffer exists, and everything users do to `.grad` keeps its
meaning. `accumulate()` moves them into the flat stream instead (float32 for low-precision variables), which is how
micro-batches add up in full precision; `.grad` is None afterwards. A step ends the cycle: the next `accumulate()`
overwrites. In the mode "views" (`views.py`), `.grad` is a view of the stream from the start.

None is not zero: a variable without a gradient is untouched.

The gradient of a masked element is not one: it counts as 0 in every norm, and the stream holds 0 there. What autograd
left in `.grad` stays as it is.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ..errors import GradientError, UnknownNameError
from ..memory.streams import FROZEN_ELEMENTS, GRADS, Stream, same_dtype
from ..variables.registry import Registry
from ..variables.variable import Variable
from .freezing import flags_moved, follow_flags
from .masks import clear_masked
from .plans import PlanSet
from .views import GradViews


@dataclass
class Collected:
    """The gradients of some variables: scattered, or in the flat stream for those that are touched."""

    grads: Sequence[Tensor | None] | None
    touched: list[bool]

    def touched_of(self, plans: PlanSet) -> list[bool]:
        """Which of the variables have a gradient."""
        if self.grads is None:
            return self.touched
        return [grad is not None for grad in self.grads]


class Gradients:
    """The gradients of all variables of a registry.

    Args:
        mode: "gather" or "views".
    """

    def __init__(self, registry: Registry, mode: str = "gather") -> None:
        if mode not in ("gather", "views"):
            raise ValueError(f"grads={mode!r} is not a mode; use 'gather' or 'views'")
        # Weak: the registry owns this object, and buffers must go with the last handle, not with the next collection.
        self._registry = weakref.ref(registry)
        self.mode = mode
        self.touched: set[int] = set()  # ids of the variables whose stream span holds a gradient of this cycle
        self.spent = False  # a step has used the stream: the next accumulate starts anew
        self.exposed = False  # the stream was handed out: its norm may have changed behind our back
        self.fresh = False  # the norm of `plans` is that of the stream
        self._plans: PlanSet | None = None
        # Of the variables that were zeroed last, by generation of the registry and indices.
        self._stretches: tuple[Any, list[tuple[torch.dtype, int, int]]] = (None, [])
        self.views = GradViews(self._registry)
        registry.before_carve.append(self.before_carve)
        registry.after_carve.append(self._follow)

    @property
    def registry(self) -> Registry:
        registry = self._registry()
        assert registry is not None
        return registry

    # The stream ---------------------------------------------------------------------------------------------------

    def held(self, region: torch.dtype) -> Stream:
        """The gradients of a region: in float32 for narrower variables, unless they are views."""
        return self.registry.streams.get(GRADS, region, same_dtype if self.mode == "views" else at_least_float32)

    def stream(self, region: torch.dtype) -> Tensor:
        """The flat gradients of a region, [trainable_numel]."""
        return self.held(region).buffer

    @torch.no_grad()
    def read_stream(self, region: torch.dtype) -> Tensor:
        """The stream for a user's eyes: what is pending is gathered, what no variable has is zero."""
        self.flush()
        if self.mode == "gather" and not self.touched:
            self.stream(region).zero_()
        self.exposed = True
        return self.stream(region)

    @torch.no_grad()
    def of(self, variable: Variable) -> Tensor | None:
        """One variable's gradient, or None."""
        pending = variable.param.grad
        if self.mode == "gather" and variable.id in self.touched:
            if pending is None:
                self.exposed = True
                return self.held(variable.dtype).view(variable.span)
            if not self.spent:
                # What a step would use, in a tensor of its own: looking must not gather, a scale may still come.
                trains = self.registry.masks.of(variable)
                pending = pending if trains is None else pending.masked_fill(~trains, 0.0)
                return self.held(variable.dtype).view(variable.span) + pending
        if self.mode == "views":
            return variable.param.grad if self.collect([variable]).touched[0] else None
        return pending

    def plans(self) -> PlanSet:
        """Plans over all variables that can have a gradient."""
        self.registry.settle()
        if flags_moved(self.registry):
            follow_flags(self.registry)
        if self._plans is None or self._plans.generation != self.registry.generation:
            self._plans = PlanSet(self.registry, self.registry.trainable())
            self.fresh = False
        return self._plans

    def before_carve(self) -> None:
        """The registry is about to carve."""
        if self.mode == "views":
            self.views.before_carve(self.registry.variables)

    def _follow(self) -> None:
        """After a re-carve: spans moved, so views must be made anew; what was written stays written."""
        self.fresh = False
        self._plans = None  # its views would keep the old stream
        if self.mode == "views":
            self.views.after_carve(self.registry.trainable())

    # Collecting ---------------------------------------------------------------------------------------------------

    def collect(self, variables: Sequence[Variable]) -> Collected:
        """The gradients a step of these variables would use now."""
        if self.mode == "views":
            return Collected(None, self.views.settle_all(variables))
        pending = [v.param.grad for v in variables]
        return self.choose(variables, pending)

    def collect_for(self, plans: PlanSet) -> Collected:
        """The same for the variables of some plans, without a turn of Python per variable beyond reading `.grad`."""
        if self.mode == "views":
            return self.collect(plans.variables)
        return self.choose(plans.variables, plans.pending())

    def norm_for(
        self, plans: PlanSet, collected: Collected, sources: Sequence[Any], grad_scale: Tensor | None = None
    ) -> Tensor:
        """The norm of these gradients: what the last accumulate left, if it still holds, else one launch a region."""
        mine = self._plans
        holds = collected.grads is None and self.fresh and not self.exposed and grad_scale is None
        if mine is not None and holds and mine.generation == plans.generation and mine.variables == plans.variables:
            return mine.norm
        return plans.norm_(sources, grad_scale)

    def choose(self, variables: Sequence[Variable], pending: Sequence[Tensor | None]) -> Collected:
        """In "gather" mode: the pending gradients, or the stream where one was accumulated."""
        if not self.touched:
            return Collected(pending, [])
        if any(grad is not None for grad in pending):
            if self.spent:
                # Gradients of a new cycle that nobody accumulated: the stream's are those of the step before.
                self.drop()
                return Collected(pending, [])
            self.accumulate()
        return Collected(None, [v.id in self.touched for v in variables])

    def sources(self, plans: PlanSet, collected: Collected) -> list[Any]:
        """Sources of a launch of these plans."""
        if collected.grads is not None:
            return plans.scattered(collected.grads)
        return plans.gathered(self.stream, collected.touched)

    # Operations ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def flush(self) -> None:
        """Takes what is pending into the stream."""
        if any(v.param.grad is not None for v in self.registry.trainable()):
            self.accumulate()

    @torch.no_grad()
    def accumulate(
        self, grads: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None, scale: float = 1.0
    ) -> None:
        """See `VarStore.accumulate`."""
        plans = self.plans()
        plans.guard.check()
        if self.mode == "views":
            self._accumulate_views(plans, grads, scale)
            return
        given = plans.pending() if grads is None else self._aligned(plans, grads)
        touched = [grad is not None for grad in given]
        if not any(touched):
            return
        add = bool(self.touched) and not self.spent
        ready = plans.in_memory_order(given)
        for part in plans.parts:
            part.plan.accumulate_(part.pick(ready), self.stream(part.region), float(scale), add)
        if grads is None:
            for param in plans.params:
                param.grad = None
        if not add:
            self.touched = set()
        self.touched.update(compress(plans.ids, touched))
        self.spent = False
        self.fresh = True

    def _accumulate_views(self, plans: PlanSet, grads: Any, scale: float) -> None:
        if scale != 1.0:
            raise GradientError(
                f"accumulate(scale={scale}) cannot scale gradients that autograd already added in place; "
                'scale the loss, or make the store with grads="gather"'
            )
        if grads is not None:
            for param, grad in zip(plans.params, plans.in_memory_order(self._aligned(plans, grads)), strict=True):
                if grad is not None:
                    _add_grad(param, grad)
        self.collect(plans.variables)
        clear_masked(self.registry)

    def _aligned(self, plans: PlanSet, grads: Mapping[str, Tensor] | Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients that a user gave, one for each variable of the plans."""
        aligned = self._by_variable(plans, grads)
        for variable, grad in zip(plans.variables, aligned, strict=True):
            if grad is not None and grad.device != self.registry.device:
                raise GradientError(
                    f"the gradient of {variable.name!r} lies on {grad.device}, but the store on "
                    f"{self.registry.device}; move it there first"
                )
        return aligned

    def _by_variable(
        self, plans: PlanSet, grads: Mapping[str, Tensor] | Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        if isinstance(grads, Mapping):
            unknown = [name for name in grads if name not in self.registry.by_name]
            if unknown:
                raise UnknownNameError(f"gradients were given for {unknown}, which the store does not hold")
            by_id = {self.registry.by_name[name].id: grad for name, grad in grads.items()}
            return [by_id.get(v.id) for v in plans.variables]
        trainable = self.registry.declared_trainable()
        if len(grads) != len(trainable):
            raise GradientError(
                f"{len(grads)} gradients were given for {len(trainable)} trainable variables; give one per "
                "variable in creation order (None where there is none), or a mapping from names"
            )
        given = {v.id: grad for v, grad in zip(trainable, grads, strict=True)}
        return [given.get(v.id) for v in plans.variables]

    @torch.no_grad()
    def add(self, variable: Variable, grad: Tensor) -> None:
        """Adds to one variable's gradient, wherever it lies; None counts as zero here."""
        if variable.id in self.touched and not self.spent:
            self.held(variable.dtype).view(variable.span).add_(grad.to(self.registry.device))
            self.fresh = False
            return
        own = grad.detach().to(variable.param.device, variable.dtype, copy=True)
        if variable.param.grad is None or self.of(variable) is None:
            variable.param.grad = own
        else:
            variable.param.grad.add_(own)

    def drop(self) -> None:
        """Forgets the stream's gradients; no byte is written."""
        self.touched = set()
        self.spent = False
        self.fresh = False

    def forget(self, variables: Sequence[Variable]) -> None:
        """Drops some variables' accumulated gradients: another optimizer's in the same store stay."""
        if self.touched:
            gone = {variable.id for variable in variables}
            if self.touched <= gone:
                self.drop()
            elif self.touched & gone:
                self._zero_spans([v for v in variables if v.id in self.touched])
                self.touched -= gone
                self.fresh = False

    def _zero_spans(self, variables: Sequence[Variable]) -> None:
        """One launch for each stretch of neighbors: for all variables, one a region."""
        registry = self.registry
        chosen = registry.generation, [variable.index for variable in variables]
        if self._stretches[0] != chosen:
            self._stretches = chosen, registry.layout.stretches(chosen[1])
        for dtype, start, stop in self._stretches[1]:
            self.stream(dtype)[start:stop].zero_()

    @torch.no_grad()
    def zero(self, set_to_none: bool = True, variables: Sequence[Variable] | None = None) -> None:
        """See `VarStore.zero_grad`; of some variables only, if given."""
        chosen = self.registry.variables if variables is None else variables
        if self.mode == "gather" and set_to_none:
            for variable in chosen:
                variable.param.grad = None
            self.forget(chosen)
            return
        trainable = [v for v in chosen if v.spec.trainable and not v.frozen]
        if self.mode == "views":
            if set_to_none:
                self._zero_spans(trainable)
                self.views.reset(trainable)
            else:
                hits = self.views.settle_all(trainable)
                written = [v.param.grad for v in compress(trainable, hits) if v.param.grad is not None]
                self._zero_in_place(written)
            return
        self._zero_in_place([v.param.grad for v in trainable if v.param.grad is not None])
        if self.touched:
            self._zero_spans(trainable)
            self.fresh, self.spent = False, False

    @staticmethod
    @torch.no_grad()
    def _zero_in_place(grads: list[Tensor]) -> None:
        if grads:
            torch._foreach_zero_(grads)

    # Norms and clipping -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm(self, order: float = 2.0) -> Tensor:
        """See `VarStore.grad_norm`."""
        plans = self.plans()
        plans.guard.check()
        collected = self.collect(plans.variables)
        if not order > 0.0:
            # Not a norm over one vector (-inf is the smallest of the variables' norms): torch's own, tensor by tensor.
            grads = [grad for grad in map(self._unmasked, plans.variables) if grad is not None]
            return torch.nn.utils.get_total_norm(grads, order)
        if order != 2.0:
            norms = plans.variable_norms(self.sources(plans, collected), order, values=False)[1]
            return torch.linalg.vector_norm(norms, order) if len(norms) else plans.norm.clone()
        if not (collected.grads is None and self.fresh and not self.exposed):
            plans.norm_(self.sources(plans, collected))
        return plans.norm.clone()

    def _unmasked(self, variable: Variable) -> Tensor | None:
        """One variable's gradient with zeros where it is masked."""
        grad, frozen = self.of(variable), self.registry.streams.find(FROZEN_ELEMENTS, variable.dtype)
        if grad is None or frozen is None:
            return grad
        return grad.masked_fill(frozen.view(variable.span).view(torch.bool), 0.0)

    @torch.no_grad()
    def norms(self, order: float = 2.0) -> dict[str, tuple[Tensor, Tensor | None]]:
        """See `VarStore.norms`."""
        plans = self.plans()
        plans.guard.check()
        collected = self.collect(plans.variables)
        has = [g is not None for g in collected.grads] if collected.grads is not None else collected.touched
        values, grads = plans.variable_norms(self.sources(plans, collected), order, values=True)
        rows = zip(plans.variables, values.unbind(), grads.unbind(), has, strict=True)
        return {v.name: (value, grad if hit else None) for v, value, grad, hit in rows if v.requires_grad}

    @torch.no_grad()
    def clip_norm_(
        self, max_norm: float, order: float = 2.0, error_if_nonfinite: bool = False, per_tensor: bool = False
    ) -> Tensor:
        """See `VarStore.clip_grad_norm_`."""
        if per_tensor and not order > 0.0:
            raise ValueError(f"per_tensor=True clips by norms of a positive order, not of {order}")
        self.accumulate()
        norm = self.norm(order)
        if error_if_nonfinite and not math.isfinite(float(norm)):
            raise GradientError(
                f"the gradient norm of order {order} is {float(norm)}, so gradients cannot be clipped; "
                "look at store.norms() for the variable, or pass error_if_nonfinite=False"
            )
        if per_tensor:
            self._clip_each(max_norm, order)
            return norm
        coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        self._each_stream(lambda stream: stream.mul_(coefficient.to(stream.dtype)))
        # A norm that is NaN or infinite makes NaN of the zeros between variables as well, and they count in no norm.
        for region, padding in self.plans().padding.items():
            self.stream(region).index_fill_(0, padding, 0.0)
        clear_masked(self.registry)
        return norm

    def _clip_each(self, max_norm: float, order: float) -> None:
        plans = self.plans()
        sources = self.sources(plans, self.collect(plans.variables))
        norms = plans.variable_norms(sources, order, values=False)[1]
        coefficients = torch.clamp(max_norm / (norms + 1e-6), max=1.0).unbind()
        pairs = [(self.of(v), each) for v, each in zip(plans.variables, coefficients, strict=True)]
        present = [(grad, each) for grad, each in pairs if grad is not None]
        if present:
            torch._foreach_mul_([grad for grad, _ in present], [each for _, each in present])
        self.fresh = False

    @torch.no_grad()
    def clip_value_(self, clip_value: float) -> None:
        """See `VarStore.clip_grad_value_`."""
        self.accumulate()
        self._each_stream(lambda stream: stream.clamp_(-clip_value, clip_value))

    def _each_stream(self, operation: Any) -> None:
        for part in self.plans().parts:
            operation(self.stream(part.region))
        self.fresh = False


def at_least_float32(region: torch.dtype) -> torch.dtype:
    """dtype of gathered gradients: sums of micro-batches lose nothing to a narrow type."""
    return region if region.itemsize > 4 else torch.float32


@torch.no_grad()
def _add_grad(param: Tensor, grad: Tensor) -> None:
    if param.grad is None:
        param.grad = grad.to(param.dtype)
    else:
        param.grad.add_(grad)
