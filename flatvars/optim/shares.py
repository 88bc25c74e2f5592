"""This rank's range of the launches of a step, and the messages that go with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backend import CODE_OF, EMPTY, Sources, make_plan
from ..distributed import collectives
from ..distributed.collectives import Message, add_up, average_share
from ..distributed.group import Group
from ..distributed.squares import SharedSquares
from ..distributed.values import gather_values
from ..gradients.attached import gradients_of
from ..gradients.exchange import Exchange
from ..gradients.plans import Part, PlanSet
from ..memory.streams import VALUES
from .ballot import HEADER, Ballot


@dataclass
class Share:
    """One part of the plans, over this rank's range.

    Attributes:
        part: The part itself, with its plan; it is about the range alone.
        squares: Of its norm.
        dtype: Of the averaged gradients of the range.
        addresses: int64 [variables, 2]: where each variable would begin in the averages, and their dtype.
        table: What launches read: the same, with 0 for variables without a gradient.
    """

    part: Part
    squares: SharedSquares
    dtype: torch.dtype
    addresses: Tensor
    table: Tensor

    def sources(self, flags: Tensor | None = None) -> Sources:
        """The averages, of the variables with a flag that is not 0; of all if not given."""
        self.table.copy_(self.addresses)
        if flags is not None:
            self.table[:, 0] *= flags != 0.0
        return Sources(self.table, (True,) * len(self.table), self.dtype)


class DividedStep:
    """The launches of one set of plans over this rank's ranges; made anew with them.

    Args:
        facts: What all ranks must say of their plans.
        before: Of the plans before, where there were any.

    Attributes:
        shares: One for each part of the plans.
        found_inf: float32 [], not 0 where nothing is to be stepped.
        flags: float64 [variables]: on how many ranks each has a gradient, after `consult`.
        is_known: Whether all ranks have agreed on the plans.
        ballot: What the ranks tell each other in their steps.
    """

    def __init__(
        self, plans: PlanSet, group: Group, facts: Mapping[str, str] | None = None, before: DividedStep | None = None
    ) -> None:
        registry = plans.registry
        self.plans, self.group, self.device = plans, group, registry.device
        self.facts = {} if facts is None else facts
        self.is_known = False
        self._former: DividedStep | None = None if before is None else before.known
        self.ballot: Ballot = Ballot(registry, group) if before is None else before.ballot
        layout, gradients = registry.layout, gradients_of(registry)
        former = {} if self._former is None else self._former._grads
        self._grads: dict[torch.dtype, Tensor] = {}
        self._averaged: set[torch.dtype] = set()  # in a message of the plans before
        self._numels = {part.region: layout.region_of[part.region].trainable_numel for part in plans.parts}
        self._behind: list[Message] = []
        self.shares: list[Share] = []
        for slot, part in enumerate(plans.parts):
            share = layout.share(part.region)
            if gradients.overlap is not None:  # in place; the store has it, which gives it up when it carves
                grads = gradients.stream(part.region)[slice(*share)]
            elif part.region in self._grads:
                grads = self._grads[part.region]
            elif part.region in former and len(former[part.region]) == share[1] - share[0]:
                grads = self._grads[part.region] = former[part.region]
            else:
                dtype = gradients.dtype_of(part.region)
                grads = self._grads[part.region] = torch.zeros(share[1] - share[0], dtype=dtype, device=self.device)
            self.shares.append(self._share(part, slot, share, grads))
        self.numel = HEADER + len(plans.variables) + sum(share.squares.numel for share in self.shares)
        self.flags = torch.zeros(0)
        self.found_inf: Tensor | None = None
        if self._former is not None and self._former.facts == self.facts:
            self._become_known(self._former._behind)

    @property
    def known(self) -> DividedStep | None:
        """Of the plans that all ranks agreed on last: these, or those before; None where there are none yet."""
        return self if self.is_known else self._former

    def _become_known(self, behind: list[Message]) -> None:
        """Args: behind: The messages that follow the all_reduce, as far as they are known."""
        self.is_known, self._former, self._behind = True, None, behind
        self.group.has_stepped = True

    def _share(self, part: Part, slot: int, share: tuple[int, int], grads: Tensor) -> Share:
        whole = part.plan
        segments = replace(whole.segments, share=share)
        plan = make_plan(segments, self.device, whole.out.norm, whole.out.sums, slot, whole.launches.tables.frozen)
        layout, world = self.plans.registry.layout, self.group.ranks.world
        borders = [layout.share(part.region, rank)[0] for rank in range(1, world)]
        squares = SharedSquares(segments, borders, plan.launches.lanes, self.device)
        starts = [grads.data_ptr() + grads.element_size() * (start - share[0]) for start in segments.starts]
        code = CODE_OF[grads.dtype]
        rows = [[start if numel else EMPTY, code] for start, numel in zip(starts, segments.numels, strict=True)]
        addresses = torch.tensor(rows, dtype=torch.int64).to(self.device)
        return Share(replace(part, plan=plan), squares, grads.dtype, addresses, torch.zeros_like(addresses))

    def average(self, streams: Mapping[torch.dtype, Tensor]) -> None:
        """Takes the mean over ranks of the flat gradients of each region; what every rank has stays as it is."""
        for region, grads in self._grads.items():
            if region not in self._averaged:
                average_share(grads, streams[region], self.group.process_group)
        self._averaged.clear()

    def consult(
        self,
        numbers_told: Mapping[str, str],
        flags: Tensor | None = None,
        *,
        norm: bool = False,
        found_inf: Tensor | None = None,
        exchange: Exchange | None = None,
        candidate: DividedStep | None = None,
        fault: str | None = None,
    ) -> None:
        """The all_reduce of a step.

        Args:
            numbers_told: What must be the same on all ranks in each step.
            flags: float64 [variables]: not 0 where this rank has a gradient.
            norm: Whether the norm is wanted.
            found_inf: float32 []: not 0 where this rank's GradScaler found an infinity.
            exchange: What became of gradients that were sent during a backward pass.
            candidate: Of other plans, by which this rank would step.
            fault: Why it cannot step.
        """
        words = [] if exchange is None else exchange.words
        numbers = torch.zeros(self.numel + len(words), dtype=torch.float64, device=self.device)
        numbers[self.numel :].copy_(torch.tensor(words, dtype=torch.float64), non_blocking=True)
        astray = candidate is not None or fault is not None
        facts = self.facts if candidate is None else candidate.facts
        self.ballot.write(
            numbers, numbers_told, facts, found_inf=found_inf, exchange=exchange, astray=astray, fault=fault
        )
        begin = HEADER + len(self.plans.variables)
        if flags is not None:
            numbers[HEADER:begin] = flags
        self.flags = numbers[HEADER:begin]
        places = []
        for share in self.shares:
            places.append(numbers[begin : begin + share.squares.numel])
            begin += share.squares.numel
            if norm:
                share.part.plan.norm_(share.sources())
                share.squares.write(share.part.plan.launches.squares(), places[-1])
        add_up(numbers, self.group.process_group)
        if norm and self.shares:
            totals = [share.squares.total(place) for share, place in zip(self.shares, places, strict=True)]
            total = totals[-1]
            for earlier in totals[:-1]:  # in the order of a launch of all variables
                total = total + earlier
            self.plans.norm.copy_(total.sqrt())
        self.found_inf = self.ballot.count(numbers, numbers[self.numel :])

    # Where ranks do not step by the plans that they agreed on --------------------------------------------------------

    def come_to_terms(
        self, numbers_told: Mapping[str, str], streams: Mapping[torch.dtype, Tensor], exchange: Exchange | None
    ) -> bool:
        """Makes these plans those that all ranks step by, if they all want to; else it has taken part in their step.

        Args:
            streams: The flat gradients, where they are not sent in buckets.

        Returns:
            Whether they do. If not, it is told at the next step, where a device is not waited for.

        Raises:
            DisagreementError: on every rank, with what differs.
            GradientError: on every rank: one cannot step.
        """
        known = self.known
        if known is None:  # no rank has sent anything
            self.group.check_same("what their optimizers step", self.facts, self.device)
            self._become_known([])
            return True
        known.send_flat(streams)
        self._averaged = {region for region in self._grads if self._grads[region] is known._grads.get(region)}
        known.consult(numbers_told, exchange=exchange, candidate=self)
        if not self.ballot.waits and not self.ballot.are_all_astray():
            known.go_along()
            return False
        while not self.ballot.check():
            known.consult(numbers_told, exchange=exchange, candidate=self)
        self._become_known([])
        return True

    def give_up(self, reason: str) -> None:
        """Takes part in a step of the other ranks, and tells them that this one cannot.

        Raises:
            GradientError: with the reason.
        """
        self.ballot.check_earlier()
        overlap = gradients_of(self.plans.registry).overlap
        exchange = None if overlap is None else overlap.give_up(reason)
        self.send_flat({})
        self.consult({}, exchange=exchange, fault=reason)
        if not self.ballot.waits and not self.ballot.are_all_astray():
            self.go_along()
        else:
            self.ballot.check()

    def send_flat(self, streams: Mapping[torch.dtype, Tensor]) -> None:
        """The message of flat gradients, with zeros for regions of which there are none."""
        for region, grads in self._grads.items():
            stream = streams.get(region)
            if stream is None or len(stream) != self._numels[region]:
                stream = torch.zeros(self._numels[region], dtype=grads.dtype, device=self.device)
            average_share(grads, stream, self.group.process_group)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Notes the messages that are sent inside, as the launches of these plans send them."""
        with collectives.heard() as self._behind:
            yield

    def go_along(self) -> None:
        """The other messages of a step in which no rank moves anything, as the others have launched it."""
        for send in self._behind:
            send()
        self.gather_values()

    def source_of(self, share: Share) -> Sources:
        """The averages of the variables that have a gradient on any rank."""
        if share.part.in_order:
            return share.sources(self.flags)
        order = torch.tensor(share.part.order, dtype=torch.int64).to(self.device, non_blocking=True)
        return share.sources(self.flags[order])

    def gather_values(self) -> None:
        """Brings the values of all ranges together, on every rank."""
        registry = self.plans.registry
        for region in dict.fromkeys(share.part.region for share in self.shares):
            gather_values(registry.streams.get(VALUES, region), registry.layout, region, self.group)
