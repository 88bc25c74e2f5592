"""Adopting a module that FSDP2 or tensor parallelism has divided: its shards become variables and stay where they are.

A DTensor is no memory of its own, and `param.data = ` changes nothing of it. So a variable has a plain Parameter over
the memory of this rank's shard, which kernels read by its address, and knows the DTensor (`Variable.whole`), which
modules, param groups and state dicts go on to hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..distributed.shards import Sharding, cuts_units, first_of, is_divided, local_of
from ..errors import InitError, SpecError
from ..init import apply_
from ..memory.spec import VarSpec, is_dense
from ..variables.registry import Adopted, HasRegistry, Registry
from .adopt import release_all, whole_store
from .keep import keep_for
from .meta import Init
from .tensors import Found, check_free, check_memory, find_tensors


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """A module's parameters; what a forward pass of FSDP2 left whole is divided again first."""
    for each in module.modules():
        if hasattr(each, "reshard") and hasattr(each, "unshard"):  # an FSDPModule, whose import takes a second
            reshard: Any = each.reshard
            reshard()
    return list(module.parameters())


def has_shards(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether one of them is a DTensor."""
    return any(map(is_divided, dict(zip(map(type, parameters), parameters, strict=True)).values()))


def sharding_of(module: nn.Module, options: dict[str, Any]) -> Sharding:
    """Over which meshes a module's parameters are divided.

    Args:
        options: What `VarStore.from_module` was given beside the module.

    Raises:
        SpecError: an option that moves, converts or initializes values, which are not the store's to move.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise SpecError(
            f"{given[0]}= was given for a module that fully_shard or parallelize_module has divided: its values stay "
            "where they are. Convert, move and initialize the module before it is divided, keep the meshes it was "
            "divided by, and leave gradients in .grad"
        )
    return Sharding(list(module.parameters()))


def adopt_shards(registry: Registry, module: nn.Module) -> None:
    """Makes variables of a divided module's parameters, by their names; buffers stay with the module.

    Raises:
        SpecError: a shard on the meta device, or one whose elements are not one run of memory.
    """
    found = find_tensors(module, "", buffers=False)
    shards = list(map(_shard, found))
    former = whole_store(registry, found)
    check_memory([Found(shard, entry.names) for entry, shard in zip(found, shards, strict=True)])
    check_free(found, former)
    specs = [_spec(entry, shard) for entry, shard in zip(found, shards, strict=True)]
    if former is not None:
        release_all(former, "the module of this store was adopted anew, by another one; use that, and its optimizers")
    registry.extend(specs, shards, [entry.names for entry in found])
    for entry, variable in zip(found, registry.variables, strict=True):
        if entry.tensor is not variable.param:
            variable.whole, variable.shard_places = entry.tensor, entry.places
            variable.first = first_of(entry.tensor)
            registry.claims.add([variable])
        else:
            variable.places = entry.places
    registry.adopted[module] = Adopted("", False)
    registry.generation += 1  # of plans that were made before it was known whose shards they are
    keep_for(registry, [module, *(place.owner() for entry in found for place in entry.places)])


def fill_shards(store: HasRegistry, init: Init) -> None:
    """Writes first values of all shards: those that the whole variables would get in a store of one process.

    Raises:
        InitError: no rules, or rules that do not match or do not fit.
    """
    if not isinstance(init, Mapping):
        raise InitError(
            f"init= is {init!r}, and a module that fully_shard or parallelize_module has divided takes rules from name "
            "patterns to initializers, {'*': fv.init.normal(0.0, 0.02)}: a function would draw for each shard by itself"
        )
    apply_(store, init)


def _spec(entry: Found, shard: torch.Tensor) -> VarSpec:
    cut, room = cuts_units(entry.tensor), shard.requires_grad
    return VarSpec(entry.names[0], tuple(shard.shape), shard.dtype, shard.stride(), has_room=room, cuts_units=cut)


def _shard(entry: Found) -> torch.Tensor:
    """The Parameter of a variable: a plain one as it is, else one over this rank's shard."""
    shard = entry.tensor
    if is_divided(shard):
        shard = nn.Parameter(local_of(shard), requires_grad=shard.requires_grad)
    if shard.is_meta:
        raise SpecError(
            f"{entry.names[0]!r} is on the meta device and has no values; call module.to_empty(device=...), and give "
            "rules of first values: from_module(module, init=rules)"
        )
    if not is_dense(tuple(shard.shape), shard.stride()):
        raise SpecError(
            f"the shard of {entry.names[0]!r} has strides {shard.stride()} for shape {tuple(shard.shape)}: kernels "
            "work on one run of memory; divide it along its first dimension, or make its shards contiguous"
        )
    return shard
