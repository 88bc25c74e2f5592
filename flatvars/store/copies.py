"""Copies of stores: deepcopy, pickle and torch.save.

Parameters need no help: each has a storage of its own (`Stream.piece`), so it is written as its own bytes and loads
where flatvars is not installed.

A copy of a store is carved anew: names, ids, values, masks and groups are the original's, gradients are not copied (as
torch does not copy those of a module), and its Parameters are those of modules and optimizers that are copied in the
same call.
"""

from __future__ import annotations

import copy
import copyreg
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FlatvarsError
from ..gradients.attached import ValueFormat, make_registry, values_of
from ..gradients.cycle import Mode
from ..memory.spec import VarSpec
from ..modules.lazy import await_lazy
from ..modules.tensors import find_tensors
from ..variables.carving import OnMoved
from ..variables.places import Place
from ..variables.registry import Adopted, Registry
from ..variables.variable import Variable
from .transfer import exactly


class Handle:
    """A variable's parameter on its way into a copy, with the modules that hold it.

    Copied deeply, it finds the copies of both that the same call made before it. Pickled, it forgets the modules: a
    store alone would write them all. `VarStore.watch` tells the loaded store.
    """

    def __init__(self, param: Tensor, places: Sequence[Place] = ()) -> None:
        self.param = param
        self.places = places

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        param = copy.deepcopy(self.param, memo)
        copied = (copy_of(place, memo) for place in self.places)
        return Handle(param, [place for place in copied if place is not None])

    def __reduce__(self) -> Any:
        return Handle, (self.param,)


class AdoptedHandle:
    """The modules that a store adopted, on their way into a copy, as the places of its variables are."""

    def __init__(self, modules: dict[nn.Module, Adopted]) -> None:
        self.modules = modules

    def __deepcopy__(self, memo: dict[int, Any]) -> AdoptedHandle:
        copies = {memo.get(id(module)): adopted for module, adopted in self.modules.items()}
        return AdoptedHandle({module: adopted for module, adopted in copies.items() if module is not None})

    def __reduce__(self) -> Any:
        return AdoptedHandle, ({},)


def copy_of(place: Place, memo: dict[int, Any]) -> Place | None:
    """The same place in the copies of its modules that a call made, if it copied the owner."""
    owner, root = memo.get(id(place.module())), memo.get(id(place.root()))
    if owner is None:
        return None
    if root is None:
        return Place(weakref.ref(owner), place.attribute, weakref.ref(owner))
    return place._replace(owner=weakref.ref(owner), root=weakref.ref(root))


def reduce_registry(registry: Registry) -> Any:
    """A registry as plain records: what deepcopy and pickle make the copy of."""
    registry.check_usable()
    registry.check_aliases()
    records = [record(registry, variable) for variable in registry.variables]
    mode, values, made = registry.gradients.mode, values_of(registry), registry.made_for_optimizer
    home = (registry.device, mode, registry.seed, registry.on_moved, values, made)
    return restore_registry, (home, registry._next_id, records, AdoptedHandle(dict(registry.adopted)))


def record(registry: Registry, variable: Variable) -> dict[str, Any]:
    return {
        "spec": variable.spec,
        "names": list(variable.names),
        "id": variable.id,
        "group": variable.group,
        "frozen": variable.frozen,
        "initializer": variable.initializer,
        "leaf": variable.is_leaf,
        "numbered": variable.is_numbered,
        "mask": registry.masks.of(variable),
        "exact": exactly(registry, variable),
        "handle": Handle(variable.param, variable.places),
    }


def restore_registry(
    home: tuple[torch.device, Mode, int, OnMoved, ValueFormat | None, bool],
    next_id: int,
    records: Sequence[dict[str, Any]],
    adopted: AdoptedHandle,
) -> Registry:
    """The registry of `reduce_registry`, carved; on the device its tensors were loaded to."""
    params = [entry["handle"].param for entry in records]
    device, mode, seed, on_moved, values, made = home
    registry = make_registry(params[0].device if params else device, mode, seed, on_moved, None, values)
    registry.made_for_optimizer = made
    for entry, param in zip(records, params, strict=True):
        spec: VarSpec = entry["spec"]
        variable = registry.declare(spec, param, entry["names"], entry["group"])
        variable.id, variable.frozen = entry["id"], entry["frozen"]
        variable.initializer, variable.is_leaf = entry["initializer"], entry["leaf"]
        variable.is_numbered = entry["numbered"]
        variable.places = list(entry["handle"].places)
    registry._next_id = next_id
    registry.adopted.update(adopted.modules)
    for module, how in adopted.modules.items():
        await_lazy(registry, find_tensors(module, how.prefix, how.buffers), None)
    registry.settle()
    for variable, entry in zip(registry.variables, records, strict=True):
        registry.masks.take(variable, entry["mask"])
        if entry["exact"] is not None:
            registry.write(variable, entry["exact"])
    return registry


def reduce_for_a_process(registry: Registry) -> Any:
    """The same for another process, where a copy of shared memory would be trained for nobody.

    Raises:
        FlatvarsError: the values lie in shared memory.
    """
    buffers = [registry.streams.values(region.dtype) for region in registry.layout.regions if region.numel]
    if any(buffer.is_shared() for buffer in buffers):  # type: ignore[no-untyped-call]
        raise FlatvarsError(
            "this store shares its memory, and sent to another process it would be a copy that no one else sees: send "
            "the module, whose Parameters are shared, and step it there with torch.optim; or send the store before "
            "share_memory_() to train a copy"
        )
    return reduce_registry(registry)


def register() -> None:
    """Tells Python's pickle and deepcopy how, and that of processes; done when flatvars is imported."""
    copyreg.pickle(Registry, reduce_registry)
    ForkingPickler.register(Registry, reduce_for_a_process)
