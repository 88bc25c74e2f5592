"""Adopting: a module's tensors become variables; it works on, unmodified.

A parameter is bound by `param.data = view`: it stays the same object, so optimizers, hooks, tied modules and the flat
weights of RNNs keep working, and it keeps a version counter of its own.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn

from ..errors import FlatvarsError
from ..variables.places import Place
from ..variables.registry import Registry, variable_of
from ..variables.variable import Variable
from .keep import keep_for, let_go
from .meta import Init, leave_meta, materialize_buffers, plan_values, renew_references
from .tensors import Found, check_memory, find_tensors, make_spec


def adopt(
    registry: Registry,
    module: nn.Module,
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    buffers: bool = False,
    init: Init | None = None,
) -> None:
    """Moves a module's tensors into the registry; see `VarStore.from_module`. Nothing changes if it raises.

    A store that held nothing but these tensors gives them up, so that a cell of a notebook may be run again.
    """
    found = find_tensors(module, prefix, buffers)
    specs = [make_spec(entry, dtype) for entry in found]
    former = whole_store(registry, found)
    check_memory(found, former)
    on_meta = [entry for entry in found if entry.tensor.is_meta]
    initialize = plan_values(registry, module, list(zip(found, specs, strict=True)), prefix, init)
    registry.check_names([name for entry in found for name in entry.names])
    if former is not None:
        release_all(former, "the module of this store was adopted anew, by another one; use that, and its optimizers")
    for entry in on_meta:
        if weakref.getweakrefcount(entry.tensor):
            leave_meta(entry, registry.device)
    names = [entry.names for entry in found]
    registry.extend(specs, [entry.tensor for entry in found], names)
    for entry in found:
        registry.by_name[entry.names[0]].places = entry.places
    keep_for(registry, [module, *(place.owner() for entry in found for place in entry.places)])
    if on_meta:
        materialize_buffers(module, registry.device)
        with torch.no_grad():
            initialize()


def whole_store(registry: Registry, found: list[Found]) -> Registry | None:
    """Another store whose variables are all among these tensors: to adopt them anew is to give it up."""
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


def watch(registry: Registry, module: nn.Module) -> list[str]:
    """See `VarStore.watch`."""
    held = {id(variable.param): variable for variable in registry.variables}
    names: dict[str, None] = {}
    for entry in find_tensors(module, "", buffers=True):
        variable = held.get(id(entry.tensor))
        if variable is None:
            continue
        variable.places += [place for place in entry.places if place not in variable.places]
        names[variable.name] = None
        keep_for(registry, [module, *(place.owner() for place in entry.places)])
    if names:
        registry.generation += 1  # plans know whom to look at from when they were made
    return list(names)
