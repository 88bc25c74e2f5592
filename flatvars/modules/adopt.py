"""Modules and stores: adopt a module, capture one while it is built, and mend what came loose.

A parameter is bound by `param.data = view`: it stays the same object, so optimizers, hooks, tied modules and the flat
weights of RNNs keep working, and it keeps a version counter of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..errors import AliasError, SpecError
from ..init.patterns import Rules
from ..memory.spec import VarSpec, contiguous_stride, is_dense
from ..memory.streams import VALUES
from ..variables.guard import current_param
from ..variables.places import Place
from ..variables.registry import Registry, variable_of
from ..variables.variable import Variable, byte_range
from .meta import plan_rules

Init = Callable[[nn.Module], object] | Rules

# Keeps a registry alive as long as a module it was made from, so that an optimizer finds it by the parameters alone.
_adopted: weakref.WeakKeyDictionary[nn.Module, Registry] = weakref.WeakKeyDictionary()


@dataclass
class Found:
    """A tensor of a module, with every name and place it has there."""

    tensor: Tensor
    names: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


def find_tensors(module: nn.Module, prefix: str, buffers: bool) -> list[Found]:
    """Parameters in registration order, then buffers if asked for; tied ones once, with all their names."""
    found: dict[int, Found] = {}
    root = weakref.ref(module)
    for kind in ("_parameters", "_buffers") if buffers else ("_parameters",):
        for path, owner in module.named_modules(remove_duplicate=False):
            parts = tuple(path.split(".")) if path else ()
            for attribute, tensor in getattr(owner, kind).items():
                if tensor is None:
                    continue
                entry = found.setdefault(id(tensor), Found(tensor))
                entry.names.append(".".join(part for part in (prefix, path, attribute) if part))
                if not any(place.owner() is owner and place.attribute == attribute for place in entry.places):
                    entry.places.append(Place(weakref.ref(owner), attribute, root, parts))
    return list(found.values())


def make_spec(found: Found, dtype: torch.dtype | None) -> VarSpec:
    """The spec of a module's tensor.

    Raises:
        SpecError: a lazy, sparse, quantized, complex or subclassed tensor.
    """
    tensor, name = found.tensor, found.names[0]
    if isinstance(tensor, UninitializedTensorMixin):
        raise SpecError(f"{name!r} is a lazy parameter without a shape yet; run one forward pass before adopting")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise SpecError(f"{name!r} is {tensor.layout} and quantized={tensor.is_quantized}; only dense tensors are held")
    if tensor.is_complex():
        raise SpecError(f"{name!r} is {tensor.dtype}; hold torch.view_as_real of it as a parameter instead")
    if type(tensor.data) is not Tensor:
        raise SpecError(
            f"{name!r} holds a {type(tensor.data).__name__}, a tensor subclass with its own memory; adopt plain tensors"
        )
    shape, stride = tuple(tensor.shape), tensor.stride()
    # An expanded or sliced tensor does not fill its memory: it becomes row-major, with the same values.
    stride = stride if is_dense(shape, stride) else contiguous_stride(shape)
    kind = tensor.dtype if dtype is None or not tensor.dtype.is_floating_point else dtype
    return VarSpec(name, shape, kind, stride, trainable=tensor.requires_grad)


def check_memory(found: list[Found]) -> None:
    """Raises where a tensor belongs to a store already, or two share memory without being one object."""
    ranges: list[tuple[int, int, int, str]] = []
    for entry in found:
        owner = variable_of(entry.tensor)
        if owner is not None:
            raise SpecError(
                f"{entry.names[0]!r} belongs to a store already, as {owner[1].name!r}; one parameter lies in one "
                "buffer: use that store, or adopt a deepcopy of the module"
            )
        tensor = entry.tensor
        if isinstance(tensor, UninitializedTensorMixin) or tensor.layout != torch.strided:
            continue
        if tensor.numel() and not tensor.is_meta:
            ranges.append((*byte_range(tensor), tensor.untyped_storage().data_ptr(), entry.names[0]))
    ranges.sort()
    for (_, stop, storage, name), (first, _, other_storage, other) in itertools.pairwise(ranges):
        if first < stop and storage == other_storage:
            raise SpecError(
                f"{name!r} and {other!r} share memory but are different objects, so they would come apart in the "
                "store; tie them by assigning one Parameter to both modules"
            )


def adopt(
    registry: Registry,
    module: nn.Module,
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    buffers: bool = False,
    init: Init | None = None,
) -> None:
    """Moves a module's tensors into the registry; see `VarStore.from_module`. Nothing changes if it raises."""
    found = find_tensors(module, prefix, buffers)
    specs = [make_spec(entry, dtype) for entry in found]
    check_memory(found)
    on_meta = [entry for entry in found if entry.tensor.is_meta]
    if isinstance(init, Mapping):
        needing = [(entry, spec) for entry, spec in zip(found, specs, strict=True) if entry.tensor.is_meta]
        initialize = plan_rules(registry, module, needing, prefix, init)
    else:
        initialize = plan_initialization(module, on_meta, init)
    registry.check_names([name for entry in found for name in entry.names])
    for entry in on_meta:
        if weakref.getweakrefcount(entry.tensor):
            leave_meta(entry, registry.device)
    names = [entry.names for entry in found]
    registry.extend(specs, [entry.tensor for entry in found], names)
    for entry in found:
        registry.by_name[entry.names[0]].places = entry.places
        for place in entry.places:
            _adopted[place.owner()] = registry  # type: ignore[index]
    _adopted[module] = registry
    if on_meta:
        materialize_buffers(module, registry.device)
        with torch.no_grad():
            initialize()


def own(registry: Registry, variable: Variable, module: nn.Module, attribute: str) -> None:
    """Puts a variable's tensor into a module that was built for it, as if the module had been adopted."""
    setattr(module, attribute, variable.param)
    renew_references(module)
    variable.places.append(Place(weakref.ref(module), attribute, weakref.ref(module)))
    _adopted[module] = registry


def plan_initialization(
    module: nn.Module, on_meta: list[Found], init: Callable[[nn.Module], object] | None
) -> Callable[[], object]:
    """How tensors that come from the meta device get values; refused before anything is carved if there is no way."""
    if init is not None:
        return lambda: module.apply(init)  # type: ignore[arg-type]
    meta = {id(entry.tensor) for entry in on_meta}
    needing = [
        (path, owner)
        for path, owner in module.named_modules()
        if any(id(p) in meta for p in owner._parameters.values())
        or any(b is not None and b.is_meta for b in owner._buffers.values())
    ]
    for path, owner in needing:
        if not callable(getattr(owner, "reset_parameters", None)):
            raise SpecError(
                f"module {path!r} ({type(owner).__name__}) is on the meta device and has no reset_parameters(), so its "
                "values are unknown; pass init=, a function that is applied to every submodule and writes them"
            )
    # A layer that lies on meta in part keeps the values it has.
    tensors = [t for _, owner in needing for t in (*owner._parameters.values(), *owner._buffers.values())]
    real = [(tensor, tensor.detach().clone()) for tensor in tensors if has_values(tensor)]

    def reset() -> None:
        for _, owner in needing:
            owner.reset_parameters()  # type: ignore[operator]
        for tensor, values in real:
            tensor.copy_(values)

    return reset


def has_values(tensor: Tensor | None) -> TypeGuard[Tensor]:
    return tensor is not None and not tensor.is_meta


def leave_meta(entry: Found, device: torch.device) -> None:
    """Replaces a Parameter on meta that cannot keep its identity: RNNs hold weak references to theirs."""
    fresh = nn.Parameter(torch.empty(0, dtype=entry.tensor.dtype, device=device), entry.tensor.requires_grad)
    fresh.__dict__.update(entry.tensor.__dict__)
    for place in entry.places:
        setattr(place.owner(), place.attribute, fresh)
        renew_references(place.owner())
    entry.tensor = fresh


def renew_references(module: nn.Module | None) -> None:
    """RNNs compare weak references with their weights: where they differ, cuDNN moves the weights out of the store."""
    if isinstance(module, nn.RNNBase):
        module._flat_weight_refs = [None if w is None else weakref.ref(w) for w in module._flat_weights]


def materialize_buffers(module: nn.Module, device: torch.device) -> None:
    """Gives meta buffers that the store did not take memory of their own; initialization writes them."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_meta:
                owner._buffers[name] = torch.zeros_like(buffer, device=device)


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
        for place in entry.places:
            _adopted[place.owner()] = registry  # type: ignore[index]
    if names:
        _adopted[module] = registry
        registry.generation += 1  # plans know whom to look at from when they were made
    return list(names)


@contextmanager
def building() -> Iterator[list[nn.Module]]:
    """Notes the modules that are built in this context; after it, the list holds those with no parent among them."""
    built: dict[int, nn.Module] = {}
    children: set[int] = set()

    def on_parameter(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        built[id(module)] = module

    def on_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        built[id(module)] = module
        if child is not None:
            built[id(child)] = child
            children.add(id(child))

    handles = [
        torch_module.register_module_parameter_registration_hook(on_parameter),
        torch_module.register_module_module_registration_hook(on_module),
    ]
    roots: list[nn.Module] = []
    try:
        yield roots
    finally:
        for handle in handles:
            handle.remove()
        roots.extend(module for key, module in built.items() if key not in children)


def hand_over(registry: Registry, former: set[int]) -> None:
    """Makes modules that kept one of some other registries alive keep this one."""
    for module, kept in list(_adopted.items()):
        if id(kept) in former:
            _adopted[module] = registry


@torch.no_grad()
def rebind(registry: Registry) -> list[str]:
    """Takes in what replaced the store's memory or parameters; see `VarStore.rebind`."""
    registry.settle()
    params = [current_param(variable) for variable in registry.variables]
    specs = []
    for variable, param in zip(registry.variables, params, strict=True):
        if tuple(param.shape) != tuple(variable.shape):
            raise AliasError(
                f"variable {variable.name!r} now has shape {tuple(param.shape)} instead of {tuple(variable.shape)}; "
                "a store keeps shapes: adopt the changed module into a new VarStore"
            )
        stride = param.stride() if is_dense(tuple(param.shape), param.stride()) else variable.spec.stride
        specs.append(dataclasses.replace(variable.spec, dtype=param.dtype, stride=stride))
    devices = {param.device for param in params} or {registry.device}
    if len(devices) > 1:
        raise AliasError(f"variables now lie on several devices ({devices}); move the whole module to one of them")
    strayed = {
        variable.index: param.detach()
        for variable, param in zip(registry.variables, params, strict=True)
        if not registry.is_bound(variable, param)
    }
    for variable, param in zip(registry.variables, params, strict=True):
        if param is not variable.param:
            variable.param = param
            variable.places = [place.renewed() for place in variable.places]
            registry.claims.add(variable)
    registry.recarve(specs, devices.pop(), check=False)
    for i, values in strayed.items():
        registry.view(VALUES, registry.variables[i]).copy_(values)
    return [registry.variables[i].name for i in strayed]
