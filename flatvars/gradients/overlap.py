"""Gradients that are averaged over ranks while a backward pass still runs.

The flat gradients are cut into buckets (`distributed/buckets.py`). As soon as every variable in a bucket has its
gradient, the bucket's are put into the flat buffer, where its owner gets the average, in place. All ranks start
buckets in one order: one that is ready early waits for its turn. It is the reverse of memory order at first, then that
in which the first rank's first backward pass was through with them, as DDP does it. What no backward pass has started
is started at the end of the block, or in the step; so every rank sends the same messages in the same order, whatever it
had gradients of, whether its backward pass raised, and whether there was a block at all.

What was sent must be what is stepped. Whatever happens to gradients in between is a fault of this rank; it goes to all
ranks with the numbers that a step exchanges anyhow, and every rank then raises, and steps nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..distributed.buckets import Bucket
from ..distributed.collectives import Reduction
from ..distributed.group import Group
from ..errors import FlatvarsError, GradientError
from ..variables.registry import Registry
from ..variables.variable import Variable
from .cuts import Cut, buckets_for, cut_for, void_cut
from .exchange import WAY_OUT, Exchange, Noted
from .plans import PlanSet, checked

_requires_grad = attrgetter("requires_grad")


class Put(NamedTuple):
    """What became of the gradients of some variables.

    Attributes:
        touched: Which may have one.
        flags: float64 [variables]: not 0 for those that do.
        left: What lies in `.grad` now.
    """

    touched: list[bool]
    flags: Tensor
    left: Sequence[Tensor | None]


class ExchangedGradients(Protocol):
    """What is asked of the gradients of a registry."""

    @property
    def registry(self) -> Registry: ...

    def plans(self) -> PlanSet:
        """Over all variables that can have a gradient."""

    def stream(self, region: torch.dtype) -> Tensor:
        """The flat gradients of a region."""

    def dtype_of(self, region: torch.dtype) -> torch.dtype:
        """Of those."""

    def before_put(self) -> None:
        """A new exchange begins: every variable is put once."""

    def put(self, plans: PlanSet) -> Put:
        """Makes the flat buffer hold the gradients of some variables, and zeros of those that have none."""


class Overlap:
    """The exchange of a store's gradients, bucket by bucket.

    Args:
        gradients: Of the store.
        group: The ranks, with `bucket_bytes`.
    """

    def __init__(self, gradients: ExchangedGradients, group: Group) -> None:
        # Weak: the gradients have this object, and buffers must go with the last handle.
        self._source = weakref.ref(gradients)
        self.group = group
        self._cut: Cut | None = None
        self._agreed: list[Bucket] | None = None  # which all ranks have, in reverse memory order
        self._order: list[int] | None = None  # of those, once it was learned
        self._exchange: Exchange | None = None
        self._hooks: dict[int, Any] = {}  # by position
        self._reached: list[bool] = []  # which variables autograd reaches, and what each bucket waits for then
        self._missing: list[int] = []

    @property
    def _gradients(self) -> ExchangedGradients:
        gradients = self._source()
        assert gradients is not None
        return gradients

    # What others ask ------------------------------------------------------------------------------------------------

    @property
    def is_sent(self) -> bool:
        """Whether gradients were sent that no step has used."""
        return self._exchange is not None and self._exchange.next > 0 and not self._exchange.is_void

    @property
    def touched(self) -> list[bool]:
        """Which variables may have a gradient, of what was sent."""
        assert self._exchange is not None
        return self._exchange.touched

    def check_unsent(self, doing: str) -> None:
        """Raises GradientError where gradients were sent: they are averages by now, or on their way."""
        if self.is_sent:
            raise GradientError(
                f"{doing} is about the gradients of this rank, and last_backward() has exchanged them for averages: "
                "step next, or call zero_grad() to drop them; to clip, make the optimizer with max_norm="
            )

    def zeroed(self, ids: Collection[int]) -> None:
        """Gradients of these variables are dropped: so is what was sent, if they are all."""
        exchange = self._exchange
        if exchange is None or not exchange.next:
            return
        if exchange.open:
            exchange.fault = f"gradients were zeroed inside of last_backward(), after some had been sent; {WAY_OUT}"
            raise GradientError(exchange.fault)
        if set(ids).issuperset(exchange.cut.ids):
            self._exchange = None
            return
        for variable in exchange.cut.variables:
            if variable.id in ids:
                exchange.spoil(variable)

    def overwritten(self, variable: Variable) -> None:
        """What lies in `.grad` of a variable takes the place of what was sent, if it was."""
        if self.is_sent and self._exchange is not None:
            self._exchange.spoil(variable)

    def used(self) -> None:
        """A step has used what was sent; on a GPU, what the ranks say of it is read a step later."""
        if self._exchange is not None:
            self._exchange.noted.clear()  # gradients, which may be dropped now
        self._exchange = None

    # The block ------------------------------------------------------------------------------------------------------

    @contextmanager
    def block(self, scale: Tensor | None) -> Iterator[None]:
        """See `VarStore.last_backward`."""
        exchange = self._enter(scale)
        try:
            yield
        except BaseException as error:
            exchange.fault = (
                exchange.fault or f"the block of last_backward() raised {type(error).__name__}: {error}; {WAY_OUT}"
            )
            self._leave(exchange)
            raise
        self._leave(exchange)
        if exchange.error is not None:
            raise exchange.error

    def _enter(self, scale: Tensor | None) -> Exchange:
        last = self._exchange
        if last is not None and last.open:
            raise GradientError("last_backward() is open already: a step has one, around its last backward pass")
        if last is not None and not last.is_gone():
            raise GradientError(
                "gradients that last_backward() exchanged were not used: call step(), or zero_grad() to drop them, "
                "before the next one"
            )
        self._exchange = None
        exchange = self._begin(scale, self._cut_for(checked(self._gradients.plans)))
        self._listen(exchange)
        return exchange

    def _begin(self, scale: Tensor | None, cut: Cut) -> Exchange:
        device = self._gradients.registry.device
        count = len(cut.variables)
        exchange = self._exchange = Exchange(cut, scale, torch.zeros(count, dtype=torch.float64, device=device))
        exchange.is_void = cut.is_void
        exchange.missing = [0] * len(cut.buckets)
        exchange.arrived, exchange.touched = [False] * count, [False] * count
        return exchange

    def _leave(self, exchange: Exchange) -> None:
        """Starts what was not started, and waits for all: who looks at gradients next finds nothing under way."""
        exchange.open = False
        while exchange.next < len(exchange.cut.puts):
            self._start(exchange)
        try:
            for work in exchange.works:
                work.wait()
        except RuntimeError as error:
            if exchange.fault is None:
                raise
            exchange.fault += f"; and other ranks could not be reached: {error}"  # what raised in the block is told
        exchange.works.clear()

    # One bucket -----------------------------------------------------------------------------------------------------

    def _start(self, exchange: Exchange) -> None:
        """Starts the next bucket, whatever becomes of its gradients: all ranks wait for it."""
        n = exchange.next
        try:
            if n == 0 and not exchange.is_void:
                self._gradients.before_put()
            exchange.next += 1
            self._put(exchange, n)
        except Exception as error:
            exchange.next = n + 1
            exchange.error = exchange.error or error
            exchange.fault = exchange.fault or f"{error}; {WAY_OUT}"
        if n == len(exchange.cut.buckets):
            return
        bucket = exchange.cut.buckets[n]
        if exchange.is_void:
            dtype, device = self._gradients.dtype_of(bucket.region), exchange.flags.device
            piece = torch.zeros(bucket.stop - bucket.start, dtype=dtype, device=device)
        else:
            piece = self._gradients.stream(bucket.region)[bucket.start : bucket.stop]
            if exchange.scale is not None:
                piece.mul_(1.0 / exchange.scale)
        exchange.works.append(Reduction(piece, bucket.owner, self.group.process_group))

    def _put(self, exchange: Exchange, n: int) -> None:
        plans, positions = exchange.cut.plans[n], exchange.cut.puts[n]
        if plans is None:
            return
        found = self._gradients.put(plans)
        places = torch.tensor(positions, dtype=torch.int64).to(exchange.flags.device, non_blocking=True)
        exchange.flags[places] = found.flags
        for k, touched in zip(positions, found.touched, strict=True):
            exchange.touched[k] = touched
        exchange.noted.append(Noted.of(positions, plans.params, found.left))

    def arrived(self, k: int) -> None:
        """The backward pass has reached a variable: its gradient is complete."""
        exchange = self._exchange
        if exchange is None:
            return
        if not exchange.open or exchange.arrived[k]:
            again = "twice inside of one last_backward()" if exchange.open else "after last_backward() had exchanged it"
            exchange.fault = (
                f"a backward pass reached {exchange.cut.variables[k].name!r} {again}: put only the last backward pass "
                f"of a step into the block, and step before the next one; {WAY_OUT}"
            )
            raise GradientError(exchange.fault)
        exchange.arrived[k] = True
        for n in exchange.cut.within[k]:
            exchange.missing[n] -= 1
            if not exchange.missing[n]:
                exchange.complete.append(n)
        while exchange.next < len(exchange.missing) and not exchange.missing[exchange.next]:
            self._start(exchange)
        if exchange.error is not None:
            raise exchange.error

    def _listen(self, exchange: Exchange) -> None:
        """Hooks on all variables that autograd reaches, and how many gradients each bucket waits for."""
        reached = list(map(_requires_grad, exchange.cut.params))
        if reached != self._reached:
            self._reached, self._missing = reached, self._missing_of(exchange.cut, reached)
        exchange.missing = list(self._missing)

    def _missing_of(self, cut: Cut, reached: list[bool]) -> list[int]:
        """How many gradients each bucket waits for: what plain torch froze is sent with what lies in `.grad`."""
        reference, missing = weakref.ref(self), [0] * len(cut.buckets)
        for k in compress(range(len(reached)), reached):
            if k not in self._hooks:
                listen: Any = cut.params[k].register_post_accumulate_grad_hook
                self._hooks[k] = listen(_hook(reference, k))
            for n in cut.within[k]:
                missing[n] += 1
        return missing

    # A step ---------------------------------------------------------------------------------------------------------

    def complete(self, plans: PlanSet, grad_scale: Tensor | None, found_inf: Tensor | None) -> Exchange:
        """What a step of some plans uses; sends it now, if no block has.

        Raises:
            FlatvarsError: not all variables that train are in these plans.
            GradientError: the block has not ended.
        """
        exchange = self._exchange
        if exchange is not None and exchange.open:
            raise GradientError("step() was called inside of last_backward(): leave the block first")
        cut = self._cut_for(self._gradients.plans()) if exchange is None else exchange.cut
        is_same = cut.generation == plans.generation  # else it is a fault of what was sent
        if is_same and cut.ids != plans.ids:
            raise FlatvarsError(
                "a store with bucket_cap_mb= takes one optimizer, of all variables that train, and this one steps "
                f"{len(plans.ids)} of {len(cut.ids)}: freeze the others, give all to one optimizer as "
                "param groups, or leave bucket_cap_mb= out"
            )
        if exchange is None:
            exchange = self._begin(grad_scale, cut)
            self._leave(exchange)
        else:
            exchange.check_scale(grad_scale, found_inf)
            exchange.check_same(plans.generation, after_check=found_inf is not None)
            if not is_same:
                exchange.flags = exchange.flags.new_zeros(len(plans.ids))
        exchange.words = self._words(exchange)
        return exchange

    def agreed(self, exchange: Exchange, grad_scale: Tensor | None) -> Exchange:
        """All ranks have agreed on what trains now, and so on its buckets.

        Args:
            exchange: What a step had before.

        Returns:
            What it uses: if zeros had been sent for gradients, these are sent now.
        """
        buckets = self._buckets_of(self._gradients.plans())
        if buckets != self._agreed:
            self.forget_cut()
            self._agreed, self._order = buckets, None
        if not exchange.is_void:
            return exchange
        exchange = self._begin(grad_scale, self._cut_for(self._gradients.plans()))
        self._leave(exchange)
        exchange.words = self._words(exchange)
        return exchange

    def give_up(self, reason: str) -> Exchange:
        """What a rank sends that cannot step, so that the others do not wait for it; ends what is under way."""
        exchange = self._exchange
        if exchange is None:
            exchange = self._begin(None, void_cut(-1, [], self._sent_order()))
        if exchange.open or exchange.is_void:
            exchange.fault = exchange.fault or f"{reason}; {WAY_OUT}"
        self._leave(exchange)
        exchange.words = self._words(exchange)
        return exchange

    def refused(self, void: int, world: int) -> None:
        """Nothing was stepped.

        Args:
            void: How many ranks have sent zeros for gradients: averages that were made of them are none.
        """
        exchange = self._exchange
        if exchange is None or not void:
            return
        if void == world:
            self._exchange = None
        else:
            exchange.fault = exchange.fault or f"some ranks could not send their gradients; {WAY_OUT}"

    # Buckets --------------------------------------------------------------------------------------------------------

    def _cut_for(self, plans: PlanSet) -> Cut:
        """The buckets of the variables that train now; those that all ranks agreed on, as long as they are others.

        The first time, all ranks must agree, and call it. Later, a step finds out whether they do (`agreed`).
        """
        if self._cut is not None and self._cut.generation == plans.generation:
            return self._cut
        self.forget_cut()
        buckets = self._buckets_of(plans)
        is_first, is_known = self._agreed is None, self._agreed == buckets
        if not is_first and not is_known:
            self._cut = void_cut(plans.generation, plans.variables, self._sent_order())
            return self._cut
        made = cut_for(plans, buckets, list(range(len(buckets))) if self._order is None else self._order)
        if is_first:
            self.group.check_same("the buckets of their gradients", made.facts(), plans.registry.device)
            self._agreed = buckets
        self._cut = made
        return made

    def _buckets_of(self, plans: PlanSet) -> list[Bucket]:
        assert self.group.bucket_bytes is not None
        return buckets_for(plans, self._gradients.dtype_of, self.group.bucket_bytes)

    def _sent_order(self) -> list[Bucket]:
        """The buckets that all ranks agreed on, in the order in which they are sent."""
        agreed = self._agreed or []
        return agreed if self._order is None else [agreed[n] for n in self._order]

    # Their order ----------------------------------------------------------------------------------------------------

    def _words(self, exchange: Exchange) -> list[int]:
        """What this rank says of the order of buckets in the message of a step: sums over ranks go to `learn`."""
        if self._order is not None:
            return []
        found = exchange.found_order() if self.group.ranks.rank == 0 else None
        return [1 + n for n in found] if found is not None else [0] * len(exchange.cut.buckets)

    def learn(self, words: Sequence[float]) -> None:
        """From the next exchange on, buckets are sent in the first rank's order, if it has said one of them."""
        if self._order is None and words and len(words) == len(self._agreed or []) and all(words):
            self._order = [int(word) - 1 for word in words]
            self.forget_cut()

    def forget_cut(self) -> None:
        """The variables are about to move: plans would keep what they lie in."""
        self._cut = None
        self._reached = []
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()


def _hook(reference: weakref.ref[Overlap], k: int) -> Callable[[Tensor], None]:
    def arrived(_param: Tensor) -> None:
        overlap = reference()
        if overlap is not None:
            overlap.arrived(k)

    return arrived
