"""The step of an optimizer whose state is shared out over ranks.

Every rank has all values and the gradients of its own batch. A step is one reduce_scatter of the flat gradients, which
leaves the average of a rank's range there; one all_reduce of a few float64 numbers, among them the sums of squares that
the norm is made of; the launch over the range; and one all_gather of the values, in place. A region of another dtype
takes a reduce_scatter and an all_gather of its own.

Whatever a step depends on is decided by what came out of the all_reduce, so all ranks decide the same: whether a
variable has a gradient (one rank is enough), whether the norm is finite, whether a GradScaler of one rank found an
infinity, and whether all ranks step with the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..backend import CODE_OF, EMPTY, Rule, Sources, make_plan
from ..distributed.collectives import add_up, average_share
from ..distributed.group import Group
from ..distributed.squares import SharedSquares
from ..distributed.values import gather_values
from ..gradients.attached import gradients_of
from ..gradients.cycle import Collected
from ..gradients.exchange import Exchange
from ..gradients.plans import Part, PlanSet
from ..memory.streams import VALUES
from ..variables.registry import Registry
from ..variables.variable import Variable
from .agreement import Numbered, digests_of, members_of, numbers_of, values_taken_in
from .checks import check_complete
from .membership import Membership
from .scaling import read_scaling

# Numbers of an agreement: two digests of 20 bits, each with its square. Sums of both over up to 2,048 ranks are exact
# in float64, and all ranks have the same digest d if ranks * sum(d^2) = sum(d)^2.
AGREEMENT = 4
HEADER = AGREEMENT + 2  # then, of a GradScaler that found an infinity, and of faults


class Stepped(Numbered, Protocol):
    """What is asked of an optimizer."""

    membership: Membership
    max_norm: float | None
    skip_nonfinite: bool
    _norm: Tensor | None
    _divided: DividedStep | None

    def observe(self, plans: PlanSet) -> None:
        """Notes whose numbers the step that is under way tells."""

    def launch_parts(
        self,
        plans: PlanSet,
        pairs: Sequence[tuple[Part, Sources]],
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
    ) -> None:
        """The step of all parts of the plans."""


def add_up_observed(registry: Registry, variables: Sequence[Variable], sums: Tensor) -> Tensor:
    """Of sums over what each rank has of some variables, [variables, sums]: those over whole ones; a collective."""
    if registry.group is not None:
        add_up(sums, registry.group.process_group)
    elif registry.sharding is not None:
        shares = [registry.sharding.share_of(variable.whole) for variable in variables]
        weights = torch.tensor(shares, dtype=torch.float64).to(sums.device, non_blocking=True)
        return registry.sharding.add_up(sums * weights[:, None])
    return sums


def add_up_sums(plans: PlanSet, part: Part, rule: Rule) -> None:
    """Makes the sums of a rule's statistics, of which each rank has those of its parts, sums over whole variables.

    In float64, one all_reduce for each region: they may differ by its last bit from those of one process.
    """
    sums = part.plan.launches.sums(rule)
    sums.copy_(add_up_observed(plans.registry, [plans.variables[k] for k in part.order], sums))


def divided_of(optimizer: Stepped, plans: PlanSet) -> DividedStep:
    """The launches of some plans over this rank's ranges; where they are new, all ranks call it.

    Raises:
        DisagreementError: on every rank, where optimizers step other variables.
    """
    step, group = optimizer._divided, plans.registry.group
    assert group is not None
    if step is None or step.plans is not plans:
        if step is not None:
            step.check_last()
        facts = members_of(optimizer, optimizer.membership.groups)
        group.check_same("what their optimizers step", facts, plans.registry.device)
        step = optimizer._divided = DividedStep(plans, group)
    return step


def step_divided(optimizer: Stepped, plans: PlanSet, collected: Collected, strict: bool = False) -> None:
    """One step of this rank's ranges; all ranks call it.

    Raises:
        DisagreementError: on every rank, with what differs; nothing was stepped.
        GradientError: `strict`, and no rank has a gradient of some variable; or, on every rank, gradients of one were
            exchanged during a backward pass and are others now. Nothing was stepped then.
    """
    registry, exchange = plans.registry, None
    scaling = read_scaling(optimizer, registry.device, collected.gathered)
    wanted = optimizer.max_norm is not None or optimizer.skip_nonfinite
    gradients = gradients_of(registry)
    if gradients.overlap is not None:  # before all other messages, as the backward passes of other ranks may have sent
        exchange = gradients.overlap.complete(plans, scaling["grad_scale"], scaling["found_inf"])
    step = divided_of(optimizer, plans)
    step.check_last()
    numbers = {**numbers_of(optimizer), **values_taken_in(registry.taken_in)}
    if exchange is not None:
        flags = exchange.flags
    else:
        flags = plans.flags(collected.sources) if collected.unseen else plans.upload_flags(collected.touched)
        step.average(gradients.flat(plans, collected, scaling["grad_scale"]))
    step.consult(numbers, flags, wanted, scaling["found_inf"], exchange)
    if registry.device.type == "cpu":
        step.check_last()
    if strict:
        check_complete([v.name for v, hit in zip(plans.variables, step.flags.tolist(), strict=True) if not hit])
    if wanted:
        optimizer._norm = plans.norm
    optimizer.observe(plans)
    pairs = [(share.part, step.source_of(share)) for share in step.shares]
    optimizer.launch_parts(plans, pairs, plans.norm, {"grad_scale": None, "found_inf": step.found_inf})
    step.gather_values()


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

    Attributes:
        shares: One for each part of the plans.
        found_inf: float32 [], not 0 where nothing is to be stepped.
        flags: float64 [variables]: on how many ranks each has a gradient, after `consult`.
    """

    def __init__(self, plans: PlanSet, group: Group) -> None:
        registry = plans.registry
        self.plans, self.group, self.device = plans, group, registry.device
        layout, gradients = registry.layout, gradients_of(registry)
        self._grads: dict[torch.dtype, Tensor] = {}
        self.shares: list[Share] = []
        for slot, part in enumerate(plans.parts):
            share = layout.share(part.region)
            if gradients.overlap is not None:  # in place; the store has it, which gives it up when it carves
                grads = gradients.stream(part.region)[slice(*share)]
            elif part.region in self._grads:
                grads = self._grads[part.region]
            else:
                dtype = gradients.dtype_of(part.region)
                grads = self._grads[part.region] = torch.zeros(share[1] - share[0], dtype=dtype, device=self.device)
            self.shares.append(self._share(part, slot, share, grads))
        self.numel = HEADER + len(plans.variables) + sum(share.squares.numel for share in self.shares)
        self.flags = torch.zeros(0)
        self.found_inf: Tensor | None = None
        self._news: Tensor | None = None
        self._told: Mapping[str, str] = {}
        self._taken_in: set[Variable] = set()
        self._exchange: Exchange | None = None
        self._overlap = gradients.overlap
        self._arrived: torch.cuda.Event | None = None

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
            stream = streams[region]
            average_share(grads, stream, self.group.process_group)

    def consult(
        self,
        told: Mapping[str, str],
        flags: Tensor,
        norm: bool,
        found_inf: Tensor | None,
        exchange: Exchange | None = None,
    ) -> None:
        """The all_reduce of a step.

        Args:
            told: What must be the same on all ranks.
            flags: float64 [variables]: not 0 where this rank has a gradient.
            norm: Whether the norm is wanted.
            found_inf: float32 []: not 0 where this rank's GradScaler found an infinity.
            exchange: What became of gradients that were sent during a backward pass.
        """
        words = [] if exchange is None else exchange.words
        numbers = torch.zeros(self.numel + len(words), dtype=torch.float64, device=self.device)
        numbers[self.numel :].copy_(torch.tensor(words, dtype=torch.float64), non_blocking=True)
        self._told, self._taken_in = told, set(self.plans.registry.taken_in)
        header = [float(number) for digest in digests_of(told) for number in (digest, digest * digest)]
        numbers[:AGREEMENT].copy_(torch.tensor(header, dtype=torch.float64), non_blocking=True)
        if found_inf is not None:
            numbers[AGREEMENT] = found_inf
        if exchange is not None:
            numbers[AGREEMENT + 1] = exchange.faults()
        begin = HEADER + len(flags)
        numbers[HEADER:begin] = flags
        places = []
        for share in self.shares:
            places.append(numbers[begin : begin + share.squares.numel])
            begin += share.squares.numel
            if norm:
                share.part.plan.norm_(share.sources())
                share.squares.write(share.part.plan.launches.squares(), places[-1])
        add_up(numbers, self.group.process_group)
        self.flags = numbers[HEADER : HEADER + len(flags)]
        if norm and self.shares:
            totals = [share.squares.total(place) for share, place in zip(self.shares, places, strict=True)]
            total = totals[-1]
            for earlier in totals[:-1]:  # in the order of a launch of all variables
                total = total + earlier
            self.plans.norm.copy_(total.sqrt())
        sums = numbers[:AGREEMENT].to(torch.int64)
        world = self.group.ranks.world
        agreed = (sums[0] * sums[0] == world * sums[1]) & (sums[2] * sums[2] == world * sums[3])
        agreed &= numbers[AGREEMENT + 1] == 0.0
        self.found_inf = ((numbers[AGREEMENT] != 0.0) | ~agreed).to(torch.float32)
        self._exchange = exchange
        self._note(torch.cat([agreed.to(torch.float64).reshape(1), numbers[self.numel :]]))

    def _note(self, news: Tensor) -> None:
        """Keeps whether the ranks agree for `check_last`. A GPU need not be waited for: nothing is stepped if not.

        Args:
            news: float64 [1 + words]: whether they do, and what they say of the order of buckets.
        """
        if news.is_cuda:
            host = torch.empty(len(news), dtype=torch.float64, pin_memory=True)
            self._news = host.copy_(news, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()  # type: ignore[no-untyped-call]
        else:
            self._news = news

    def check_last(self) -> None:
        """Raises DisagreementError, on every rank, if the ranks differed when they exchanged last.

        And GradientError, if a rank's gradients could not be stepped then.
        """
        if self._news is None:
            return
        if self._arrived is not None:
            self._arrived.synchronize()  # type: ignore[no-untyped-call]  # of one step ago
        (agreed, *words), exchange = self._news.tolist(), self._exchange
        self._news = self._exchange = None
        if not agreed:
            self.group.tell(None if exchange is None else exchange.told())
            self.group.explain("the numbers of their optimizers", self._told)
        self.plans.registry.taken_in -= self._taken_in
        if self._overlap is not None:
            self._overlap.learn(words)

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
