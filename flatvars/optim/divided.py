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
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from ..backend import Rule, Sources
from ..distributed.collectives import add_up
from ..errors import DisagreementError, GradientError
from ..gradients.attached import gradients_of
from ..gradients.cycle import Collected
from ..gradients.plans import Part, PlanSet
from ..variables.registry import Registry
from ..variables.variable import Variable
from .agreement import Numbered, members_of, numbers_of
from .checks import check_complete
from .membership import Membership
from .scaling import read_scaling
from .shares import DividedStep


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
    """The launches of some plans over this rank's ranges; made anew with them. No rank asks another one here."""
    step, group = optimizer._divided, plans.registry.group
    assert group is not None
    if step is None or step.plans is not plans:
        facts = members_of(optimizer, optimizer.membership.groups, plans)
        step = optimizer._divided = DividedStep(plans, group, facts, step)
    return step


def tell_all(optimizer: Stepped, error: Exception) -> None:
    """Tells all ranks of an error that was raised before this step has sent anything: they would wait for it."""
    known = None if optimizer._divided is None else optimizer._divided.known
    if known is not None:
        with suppress(GradientError, DisagreementError):  # this rank has its own
            known.give_up(str(error))


def step_divided(optimizer: Stepped, plans: PlanSet, collected: Collected, strict: bool = False) -> None:
    """One step of this rank's ranges; all ranks call it.

    Raises:
        DisagreementError: on every rank, with what differs; nothing was stepped.
        GradientError: `strict`, and no rank has a gradient of some variable; or, on every rank, gradients of one were
            exchanged during a backward pass and are others now, or one rank raised an error. Nothing was stepped then.
    """
    registry, exchange, streams = plans.registry, None, {}
    wanted = optimizer.max_norm is not None or optimizer.skip_nonfinite
    gradients = gradients_of(registry)
    try:
        scaling = read_scaling(optimizer, registry.device, collected.gathered)
        if gradients.overlap is not None:  # first of all messages, as backward passes of other ranks may have sent
            exchange = gradients.overlap.complete(plans, scaling["grad_scale"], scaling["found_inf"])
        else:
            flags = plans.flags(collected.sources) if collected.unseen else plans.upload_flags(collected.touched)
            streams = gradients.flat(plans, collected, scaling["grad_scale"])
        step = divided_of(optimizer, plans)
    except Exception as error:
        tell_all(optimizer, error)
        raise
    step.ballot.check_earlier()
    if not step.is_known:
        if not step.come_to_terms(numbers_of(optimizer), streams, exchange):
            return  # which a device that is not waited for tells all ranks at the next step
        if exchange is not None and gradients.overlap is not None:
            exchange = gradients.overlap.agreed(exchange, scaling["grad_scale"])
    step.average(streams)
    told = numbers_of(optimizer), exchange.flags if exchange is not None else flags
    step.consult(*told, norm=wanted, found_inf=scaling["found_inf"], exchange=exchange)
    while step.ballot.waits and not step.ballot.check():
        step.consult(*told, norm=wanted, found_inf=scaling["found_inf"], exchange=exchange)
    if strict:
        check_complete([v.name for v, hit in zip(plans.variables, step.flags.tolist(), strict=True) if not hit])
    if wanted:
        optimizer._norm = plans.norm
    optimizer.observe(plans)
    pairs = [(share.part, step.source_of(share)) for share in step.shares]
    with step.heard():
        optimizer.launch_parts(plans, pairs, plans.norm, {"grad_scale": None, "found_inf": step.found_inf})
    step.gather_values()
