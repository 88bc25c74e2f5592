"""What stays between two snapshots, kept: else a snapshot of many small variables would walk them in Python."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..gradients.plans import PlanSet
from ..variables.registry import Registry
from .records import Catalog, record_of

if TYPE_CHECKING:
    from ..optim.base import Optimizer


@dataclass(frozen=True)
class KnownVariables:
    """The variables of a registry, as they lay when it was last looked at."""

    generation: int
    catalog: Catalog
    flags: tuple[list[bool], list[bool], list[Any]]


@dataclass(frozen=True)
class KnownMembers:
    """The variables of an optimizer.

    Attributes:
        plans: The plans it had; weak, since hooks on their Parameters may lead back to the optimizer.
        names: By count key.
        group_of: Param group of each variable, by id.
        of_groups: Names in each param group.
        of_parts: Names in each part of the plans, in its order; None where the counted state was given up since.
    """

    generation: int
    plans: weakref.ref[PlanSet] | None
    sizes: list[int]
    names: dict[tuple[int, int], str]
    group_of: dict[int, int]
    of_groups: list[list[str]]
    of_parts: list[list[str | None]]


_variables: weakref.WeakKeyDictionary[Registry, KnownVariables] = weakref.WeakKeyDictionary()
_members: weakref.WeakKeyDictionary[Optimizer, KnownMembers] = weakref.WeakKeyDictionary()


def catalog_in_place(registry: Registry) -> Catalog:
    """All variables.

    Raises:
        AliasError: what would be saved is not what the model uses.
    """
    registry.settle()
    registry.check_aliases()
    known, flags = _variables.get(registry), _flags(registry)
    if known is not None and known.generation == registry.generation and known.flags == flags:
        return known.catalog
    catalog = Catalog([record_of(v) for v in registry.variables])
    _variables[registry] = KnownVariables(registry.generation, catalog, flags)
    return catalog


def _flags(registry: Registry) -> tuple[list[bool], list[bool], list[Any]]:
    variables = registry.variables
    groups = [v.group for v in variables]
    return [v.param.requires_grad for v in variables], [v.frozen for v in variables], groups


def members_of(optimizer: Optimizer) -> KnownMembers:
    """The variables of an optimizer, by group and by part of its plans."""
    generation, plans = optimizer._registry.generation, optimizer._plans
    sizes = [len(variables) for variables in optimizer._variables]
    known = _members.get(optimizer)
    if (
        known is not None
        and known.generation == generation
        and (known.plans and known.plans()) is plans
        and known.sizes == sizes
    ):
        return known
    names = {(v.id, v.state_epoch): v.name for group in optimizer._variables for v in group}
    known = KnownMembers(
        generation,
        None if plans is None else weakref.ref(plans),
        sizes,
        names,
        {v.id: i for i, group in enumerate(optimizer._variables) for v in group},
        [[v.name for v in group] for group in optimizer._variables],
        [
            [names.get(optimizer._plan_keys[k]) for k in part.order]
            for part in (plans.parts if plans is not None else [])
        ],
    )
    _members[optimizer] = known
    return known
