"""Adopting: a module's tensors become variables; it works on, unmodified.

A parameter is bound by `param.data = view`: it stays the same object, so optimizers, hooks, tied modules and the flat
weights of RNNs keep working, and it keeps a version counter of its own.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn

from ..distributed.values import send_values
from ..errors import FlatvarsError, SpecError
from ..memory.spec import VarSpec
from ..memory.streams import VALUES
from ..variables.claims import is_any_owned
from ..variables.lazy import is_lazy
from ..variables.places import Place
from ..variables.registry import Adopted, Registry, variable_of
from ..variables.variable import Variable
from .buffers import takable
from .collector import collecting_later
from .keep import keep_for, let_go
from .lazy import await_lazy
from .meta import Init, leave_meta, materialize_buffers, plan_values, renew_references
from .tensors import Found, check_memory, check_private, find_tensors, make_spec


@collecting_later()
def adopt(
    registry: Registry,
    module: nn.Module,
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    buffers: bool = True,
    init: Init | None = None,
) -> None:
    """Moves a module's tensors into the registry; see `VarStore.from_module`. Nothing changes if it raises.

    A store that held nothing but these tensors gives them up, so that a cell of a notebook may be run again.
    """
    everything = find_tensors(module, prefix, buffers)
    former = whole_store(registry, everything)
    found = takable([entry for entry in everything if not is_lazy(entry.tensor)], former)
    specs = [make_spec(entry, dtype) for entry in found]
    check_memory(found, former)
    check_private(found)
    on_meta = [(entry, spec) for entry, spec in zip(found, specs, strict=True) if entry.tensor.is_meta]
    initialize = plan_values(registry, module, on_meta, prefix, init)
    registry.check_names([name for entry in everything for name in entry.names])
    check_ranks(registry, specs)
    if former is not None:
        release_all(former, "the module of this store was adopted anew, by another one; use that, and its optimizers")
    for entry, _ in on_meta:
        if weakref.getweakrefcount(entry.tensor):
            leave_meta(entry, registry.device)
    _enter(registry, found, specs)
    late = await_lazy(registry, everything, dtype)
    places = [*(place for entry in found for place in entry.places), *(place for one in late for place in one.places)]
    keep_for(registry, [module, *(place.owner() for place in places)])
    registry.adopted[module] = Adopted(prefix, buffers)
    if on_meta:
        materialize_buffers(module, registry.device)
        with torch.no_grad():
            initialize()
    share_values(registry, specs)


def _enter(registry: Registry, found: list[Found], specs: list[VarSpec]) -> None:
    """Makes variables of a module's tensors, which know their places."""
    added = registry.extend(specs, [entry.tensor for entry in found], [entry.names for entry in found])
    for variable, entry in zip(added, found, strict=True):
        variable.places = entry.places


def check_ranks(registry: Registry, specs: list[VarSpec]) -> None:
    """Raises DisagreementError, on every rank that shares the store's state, if one adopts something else."""
    if registry.group is not None:
        facts = {spec.name: f"{spec.shape} {spec.dtype}{'' if spec.has_room else ' frozen'}" for spec in specs}
        registry.group.check_same("the tensors of their modules", facts, registry.device)


@torch.no_grad()
def share_values(registry: Registry, specs: list[VarSpec]) -> None:
    """Sends the first rank's values to all: of a whole region at once, where it is new."""
    if registry.group is None:
        return
    if len(specs) == len(registry.variables):
        for region in registry.layout.regions:
            held = registry.streams.get(VALUES, region.dtype)
            send_values(held, (0, region.numel), (0, region.trainable_units), registry.group)
        return
    for spec in specs:
        span = registry.by_name[spec.name].span
        units = (span.unit, span.unit + span.units) if span.spec.has_room else (0, 0)
        held = registry.streams.get(VALUES, spec.dtype)
        send_values(held, (span.offset, span.offset + span.numel), units, registry.group)


def adopt_buffers(registry: Registry, module: nn.Module, prefix: str) -> list[str]:
    """See `VarStore.add_buffers`."""
    registry.check_aliases()  # one that was replaced keeps its name
    found = [entry for entry in takable(find_tensors(module, prefix, buffers=True)) if not entry.is_parameter]
    specs = [make_spec(entry, None) for entry in found]
    for entry in found:
        if entry.tensor.is_meta:
            raise SpecError(f"buffer {entry.names[0]!r} is on the meta device and has no values; give it memory first")
    _enter(registry, found, specs)
    keep_for(registry, [module, *(place.owner() for entry in found for place in entry.places)])
    if module not in registry.adopted:
        registry.adopted[module] = Adopted(prefix, True)
    return [entry.names[0] for entry in found]


def whole_store(registry: Registry, found: list[Found]) -> Registry | None:
    """Another store whose variables are all among these tensors: to adopt them anew is to give it up."""
    if not is_any_owned(entry.tensor for entry in found):
        return None
    owners = [variable_of(entry.tensor) for entry in found]
    former = next((owner[0] for owner in owners if owner is not None), None)
    if former is None or former is registry:
        return None
    ids = {owner[1].id for owner in owners if owner is not None and owner[0] is former}
    return former if ids == {variable.id for variable in former.variables} else None


def release_all(registry: Registry, reason: str) -> None:
    """See `VarStore.release`."""
    registry.release(reason)
    let_go(registry)


def registry_of(module: nn.Module) -> Registry:
    """The one registry that holds a module's tensors.

    Raises:
        FlatvarsError: there is none, or there are several.
    """
    owners = [variable_of(tensor) for tensor in (*module.parameters(), *module.buffers())]
    found = list({id(owner[0]): owner[0] for owner in owners if owner is not None}.values())
    if len(found) != 1:
        who = "no store holds" if not found else f"{len(found)} stores hold"
        raise FlatvarsError(
            f"the store of a {type(module).__name__} was asked for, but {who} its parameters and buffers; adopt it "
            "with VarStore.from_module(module), or ask for a submodule's"
        )
    return found[0]


def own(registry: Registry, variable: Variable, module: nn.Module, attribute: str) -> None:
    """Puts a variable's tensor into a module that was built for it, as if the module had been adopted."""
    setattr(module, attribute, variable.param)
    renew_references(module)
    variable.places.append(Place(weakref.ref(module), attribute, weakref.ref(module)))
    keep_for(registry, [module])


def watch(registry: Registry, module: nn.Module, prefix: str = "") -> list[str]:
    """See `VarStore.watch`."""
    if registry.made_for_optimizer:
        _adopt_rest(registry, module, prefix)
    held = {id(variable.param): variable for variable in registry.variables}
    names: dict[str, None] = {}
    for entry in find_tensors(module, "", buffers=True, persistent=False):
        variable = held.get(id(entry.tensor))
        if variable is None:
            continue
        variable.places += [place for place in entry.places if place not in variable.places]
        names[variable.name] = None
        keep_for(registry, [module, *(place.owner() for place in entry.places)])
    if names:
        registry.generation += 1  # plans know whom to look at from when they were made
    return list(names)


def _adopt_rest(registry: Registry, module: nn.Module, prefix: str) -> None:
    """Makes a store that an optimizer made what it would be had the module been adopted: names, all its tensors."""
    everything = find_tensors(module, prefix, buffers=True)
    found = takable([entry for entry in everything if not is_lazy(entry.tensor)])
    held = {id(variable.param): variable for variable in registry.variables}
    rest = [entry for entry in found if id(entry.tensor) not in held]
    specs = [make_spec(entry, None) for entry in rest]
    check_memory(rest)
    check_private(rest)
    for entry in rest:
        if entry.tensor.is_meta:
            raise SpecError(f"{entry.names[0]!r} is on the meta device and has no values; give it memory first")
    known = [(held[id(entry.tensor)], entry.names) for entry in found if id(entry.tensor) in held]
    numbered = {variable: names for variable, names in known if variable.is_numbered}
    registry.check_names([name for entry in rest for name in entry.names])
    registry.rename_all(numbered)
    for variable in numbered:
        variable.is_numbered = False
    registry.extend(specs, [entry.tensor for entry in rest], [entry.names for entry in rest])
    await_lazy(registry, everything, None)
    if module not in registry.adopted:
        registry.adopted[module] = Adopted(prefix, True)
