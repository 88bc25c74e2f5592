"""Launches of an optimizer that are no steps: values and states change places, by a rule that reads no gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch

from ..backend import CODE_OF, EMPTY, Rule, Sources, Stored
from ..gradients.plans import Part, PlanSet, checked
from ..memory.streams import Stream
from .entries import Entries
from .shares import DividedStep
from .states import States, origin_of


class Exchanging(Protocol):
    """What is asked of an optimizer."""

    states: States
    entries: Entries
    param_groups: list[dict[str, Any]]

    def room_plans(self, groups: Collection[int] | None) -> PlanSet:
        """Plans over all variables with room of some param groups, or of all, as one launch each region."""


@torch.no_grad()
def apply_once(
    optimizer: Exchanging,
    rule: Rule,
    groups: Collection[int] | None = None,
    streams: Callable[[Part], Sequence[Stream]] | None = None,
    numbers: Sequence[Mapping[str, Any]] | None = None,
    regions: Collection[torch.dtype] | None = None,
) -> None:
    """Runs a rule over all variables with room, frozen or not; no step is counted.

    Args:
        rule: Its states must be some of the optimizer's own, if no `streams` are given.
        groups: Numbers of the param groups whose variables they are; None for all.
        streams: Of a region, in the order of the rule's states.
        numbers: Where the rule's numbers come from, by param group; the param groups if not given.
        regions: Dtypes of the variables; None for all.
    """
    plans = checked(lambda: optimizer.room_plans(groups))
    optimizer.entries.settle(strict=True)
    steps = optimizer.states.steps.clone()
    registry = plans.registry
    divided = None if registry.group is None else DividedStep(plans, registry.group)
    for part in plans.parts if divided is None else [share.part for share in divided.shares]:
        if regions is not None and part.region not in regions:
            continue
        values = plans.values(part)
        states = optimizer.states.streams(part.region, rule.states) if streams is None else streams(part)
        part.plan.step_(
            values_as_gradients(part, values),
            rule,
            values,
            [held.stored for held in states],
            optimizer.param_groups if numbers is None else numbers,
            steps=steps,
            **origin_of(states),
            norm=plans.norm,
            max_norm=None,
            skip=False,
            skipped=optimizer.states.skipped,
            own=optimizer.states.scalars(rule.own),
        )
    if divided is not None:
        divided.gather_values()
    torch.autograd.graph.increment_version(plans.params)


def values_as_gradients(part: Part, values: Stored) -> Sources:
    """The values of all variables in the place of gradients, wherever they lie."""
    if values.places is None:
        found: Sources = part.plan.gathered(values.buffer, [True] * len(part.order))
        return found
    there = torch.where(values.places == 0, EMPTY, values.places)
    table = torch.stack([there, torch.full_like(there, CODE_OF[values.buffer.dtype])], dim=1)
    return Sources(table, (True,) * len(there), values.buffer.dtype)
