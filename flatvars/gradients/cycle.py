"""The gradient cycle: what every way to keep gradients offers to a store, an optimizer, a checkpoint.

Of each variable a cycle is EMPTY, OPEN (there is a gradient that no step has used) or SPENT (a step has used it, and it
still lies there). A step spends the gradients of its own variables: another optimizer's stay open. `gathered.py` and
`views.py` are the two ways; nothing else asks which one it is.

None is not zero: a variable without a gradient is untouched.

The gradient of a masked element is not one: it counts as 0 in every norm, and the stream holds 0 there. What autograd
left in `.grad` stays as it is.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..memory.streams import GRADS
from ..variables.registry import Registry
from ..variables.variable import Variable
from .freezing import flags_moved, follow_flags
from .overlap import Overlap, Put
from .plans import PlanSet

Mode = Literal["gather", "views"]
"""How gradients are kept."""

PENDING = "pending"
"""Kind of gradients that autograd left in `.grad`; those in the flat stream are of the kind `GRADS`."""

Given = Mapping[str, Tensor] | Sequence[Tensor | None] | None
"""Gradients that a user hands over: by name, or in creation order."""

FetchGradient = Callable[[str, Variable, Tensor], None]
"""Copies the gradient of a kind and a variable into a tensor of its shape."""


class State(Enum):
    """Of one variable's gradient."""

    EMPTY = "there is none"
    OPEN = "no step has used it"
    SPENT = "a step has used it"


@dataclass(frozen=True)
class GradientSnapshot:
    """The open gradients of a registry; spent ones belong to the past, and are in no file.

    Attributes:
        mode: How they are kept: "gather" or "views".
        open: Variables whose gradient lies in the flat stream.
        pending: Variables whose gradient lies in `.grad`, all of it or what comes on top of the stream's.
        norm: Whether the norm over those in the stream had been taken.
    """

    mode: str
    open: Sequence[Variable]
    pending: Sequence[Variable] = ()
    norm: bool = False


@dataclass
class Collected:
    """What a step of some plans uses.

    Attributes:
        sources: Of the launches, one per part of the plans.
        touched: Which of the variables have a gradient.
        pending: The tensors among them that lie in `.grad`, and None for the others.
        gathered: Whether some were taken out of `.grad` before, where a GradScaler does not see them.
        norm: Over all of them, where it is known already.
        unseen: Whether only the device knows which variables have a gradient, once the norm was launched: it must be
            before the step. `touched` then says which may have one.
    """

    sources: list[Any]
    touched: list[bool]
    pending: Sequence[Tensor | None]
    gathered: bool = False
    norm: Tensor | None = None
    unseen: bool = False


class Gradients(ABC):
    """The gradients of all variables of a registry.

    Attributes:
        overlap: What averages them over ranks during backward passes; None where a step does, or there are no ranks.
    """

    mode: ClassVar[Mode]

    def __init__(self, registry: Registry) -> None:
        # Weak: the registry owns this object, and buffers must go with the last handle, not with the next collection.
        self._registry = weakref.ref(registry)
        self._plans: PlanSet | None = None
        self._zeroed: set[int] = set()  # variables that were zeroed since a step looked
        self._stepped: weakref.WeakSet[PlanSet] = weakref.WeakSet()
        self.overlap: Overlap | None = None
        registry.before_carve.append(self.before_carve)
        registry.after_carve.append(self.after_carve)

    @property
    def registry(self) -> Registry:
        registry = self._registry()
        assert registry is not None
        return registry

    def stream(self, region: torch.dtype) -> Tensor:
        """The flat gradients of a region, [trainable_numel]."""
        return self.registry.streams.get(GRADS, region, self.dtype_of).buffer

    @abstractmethod
    def dtype_of(self, region: torch.dtype) -> torch.dtype:
        """From a region's dtype to that of its stream."""

    def plans(self) -> PlanSet:
        """Plans over all variables that can have a gradient."""
        registry = self.registry
        registry.settle()
        if flags_moved(registry):
            follow_flags(registry)
        if self._plans is None or self._plans.generation != registry.generation:
            self._plans = PlanSet(registry, registry.trained())
            self.rewritten()
        return self._plans

    def before_carve(self) -> None:
        """The registry is about to carve."""
        self.check_unsent("moving variables")
        if self.overlap is not None:
            self.overlap.forget_cut()
        self._plans = None  # its views would keep the old stream

    @abstractmethod
    def after_carve(self) -> None:
        """Spans moved; what the stream held has moved along."""

    # One variable -------------------------------------------------------------------------------------------------

    def state(self, variable: Variable) -> State:
        """Of the gradient that lies in the flat stream."""
        if self._is_open(variable):
            return State.OPEN
        return State.SPENT if self._is_spent(variable) else State.EMPTY

    @abstractmethod
    def _is_open(self, variable: Variable) -> bool: ...

    @abstractmethod
    def _is_spent(self, variable: Variable) -> bool: ...

    @abstractmethod
    def of(self, variable: Variable) -> Tensor | None:
        """One variable's gradient, or None."""

    @abstractmethod
    def add(self, variable: Variable, grad: Tensor) -> None:
        """Adds to one variable's gradient, wherever it lies; None counts as zero here."""

    @abstractmethod
    def release(self, variables: Sequence[Variable]) -> None:
        """Forgets variables that leave, or get another shape: their gradients are left in `.grad`, in own memory."""

    @abstractmethod
    def hide_empty(self) -> None:
        """Makes `.grad` None where there is no gradient, until the next step or zeroing."""

    # The cycle ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def accumulate(self, grads: Given = None, scale: float = 1.0) -> None:
        """See `VarStore.accumulate`."""

    @abstractmethod
    def collect(self, plans: PlanSet) -> Collected:
        """The gradients that a step of these plans would use now."""

    def to_step(self, plans: PlanSet) -> Collected:
        """The same for a step: of what was sent to other ranks already, only what is known of it."""
        if self.overlap is None or not self.overlap.is_sent:
            return self.collect(plans)
        return self.sent(plans, self.overlap.touched)

    @abstractmethod
    def sent(self, plans: PlanSet, touched: list[bool]) -> Collected:
        """What a step of these plans uses that was sent to other ranks already: it has no sources."""

    @abstractmethod
    def before_put(self) -> None:
        """See `overlap.Source`."""

    @abstractmethod
    def put(self, plans: PlanSet) -> Put:
        """See `overlap.Source`."""

    def check_unsent(self, doing: str) -> None:
        """Raises GradientError where gradients were exchanged for averages that no step has used."""
        if self.overlap is not None:
            self.overlap.check_unsent(doing)

    @abstractmethod
    def flat(self, plans: PlanSet, collected: Collected, grad_scale: Tensor | None = None) -> dict[torch.dtype, Tensor]:
        """The flat gradients of each region, with those of these plans in their places and zeros where there is none.

        What lies elsewhere, in `.grad` or in the stream, stays as it is; between variables there may be anything.

        Args:
            collected: What `collect` returned for the plans.
            grad_scale: float32 [] that they are divided by.
        """

    @abstractmethod
    def spend(self, plans: PlanSet, collected: Collected) -> None:
        """A step has used these gradients."""

    def hits(self, plans: PlanSet, collected: Collected) -> list[bool]:
        """Which variables have a gradient; may synchronize."""
        return collected.touched

    def _keep_receipt(self, plans: PlanSet, collected: Collected) -> None:
        pending = collected.pending
        there = [grad is not None for grad in pending] if collected.gathered else collected.touched
        if plans.receipt is None:  # else they are among them
            self._stepped.add(plans)
        plans.note(pending, there, self._zeroed)

    def _past(self) -> set[int]:
        """Variables whose `.grad` belongs to a cycle that a step has ended."""
        return {key for plans in self._stepped for key in plans.past()}

    @abstractmethod
    def zero(
        self, set_to_none: bool = True, variables: Sequence[Variable] | None = None, plans: PlanSet | None = None
    ) -> None:
        """See `VarStore.zero_grad`; of some variables only, if given.

        Args:
            plans: An optimizer's, that cover no other variables; it saves a turn for each.
        """

    def clears(self, plans: PlanSet, variables: Sequence[Variable]) -> bool:
        """Whether the launches of a step of these plans can do what `zero` does for some variables, as they go.

        They are then told so, and `cleared` follows the step.
        """
        return False

    def cleared(self, plans: PlanSet) -> None:
        """The launches of a step of these plans have cleared the gradients: all is as after `zero` from now on."""
        raise NotImplementedError

    def norm_for(self, plans: PlanSet, collected: Collected, grad_scale: Tensor | None = None) -> Tensor:
        """The norm of these gradients: what the last accumulate left, if it still holds, else one launch a region."""
        if collected.norm is not None and grad_scale is None:
            return collected.norm
        return plans.norm_(collected.sources, grad_scale)

    def known_norm(self, plans: PlanSet) -> Tensor | None:
        """The norm of all gradients of some plans where the last accumulate left it, and nothing came on top.

        Nothing is launched or noted then, and no launch is told where gradients lie.
        """
        return None

    # The stream ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def read_stream(self, region: torch.dtype) -> Tensor:
        """The stream for a user's eyes: what is pending is gathered, what no variable has is zero."""

    @abstractmethod
    def flush(self) -> None:
        """Takes what is pending into the stream."""

    @abstractmethod
    def gathered(self, variables: Sequence[Variable]) -> list[Tensor | None]:
        """What the stream holds of each variable after a `flush`, to be written in place; None where it has none."""

    @abstractmethod
    def rewrite(self, operation: Callable[[list[Tensor]], object]) -> None:
        """Runs an operation on the elements of the streams of all regions, in place."""

    @abstractmethod
    def rewritten(self) -> None:
        """The streams were written as a whole: their norm is another, and what had no gradient may not be zero."""

    # Whole ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def snapshot(self) -> GradientSnapshot:
        """What is open now; nothing is copied."""

    @abstractmethod
    def restore(self, snapshot: GradientSnapshot, fetch: FetchGradient) -> None:
        """Puts open gradients back where they lay; all others are empty then."""
