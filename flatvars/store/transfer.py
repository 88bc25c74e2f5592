"""From store to store: copy, soft update, clone, merge; and all values as one vector.

Where two stores have one layout, a whole region is one operation; else variables are matched by name, one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import FlatvarsError, NameTakenError, SpecError, UnknownNameError
from ..memory.streams import VALUES
from ..modules.keep import hand_over
from ..variables.registry import Registry
from ..variables.variable import Variable


@torch.no_grad()
def copy_(target: Registry, source: Registry) -> None:
    """See `VarStore.copy_`."""
    pairs = pair_by_name(target, source)
    if same_places(target, source):
        for region in target.layout.regions:
            target.streams.get(VALUES, region.dtype).replace(source.streams.get(VALUES, region.dtype))
    else:
        for to, origin in pairs:
            target.write(to, source.read(origin))
    torch.autograd.graph.increment_version([to.param for to, _ in pairs])


@torch.no_grad()
def lerp_(target: Registry, source: Registry, weight: float) -> None:
    """See `VarStore.lerp_`."""
    pairs = pair_by_name(target, source)
    if same_places(target, source) and not any(map(target.is_encoded, target.variables)):
        for region in target.layout.regions:
            mix(target.streams.values(region.dtype), source.streams.values(region.dtype), weight)
    else:
        for to, origin in pairs:
            numbers = target.read(to)
            mix(numbers, source.read(origin), weight)
            if target.is_encoded(to):
                target.write(to, numbers)
    torch.autograd.graph.increment_version([to.param for to, _ in pairs])


def mix(target: Tensor, source: Tensor, weight: float) -> None:
    """target + weight * (source - target); integers have no way between, and are copied."""
    if target.dtype.is_floating_point:
        target.lerp_(source.to(target.device, target.dtype), weight)
    else:
        target.copy_(source)


def pair_by_name(target: Registry, source: Registry) -> list[tuple[Variable, Variable]]:
    """The variables of `target` with those of the same name in `source`, which may hold more.

    Raises:
        UnknownNameError: names that `source` does not hold.
        SpecError: shapes that differ. All faults at once, before anything is written.
    """
    target.check_aliases()
    source.check_aliases()
    missing = [v.name for v in target.variables if v.name not in source.by_name]
    if missing:
        raise UnknownNameError(
            f"{len(missing)} variables of this store are not in the other: {', '.join(map(repr, missing[:10]))}; "
            "nothing was changed"
        )
    pairs = [(v, source.by_name[v.name]) for v in target.variables]
    wrong = [
        f"{to.name!r}: {to.spec.shape} here, {origin.spec.shape} there" for to, origin in pairs if differ(to, origin)
    ]
    if wrong:
        raise SpecError(f"shapes differ, and nothing is broadcast: {'; '.join(wrong[:10])}; nothing was changed")
    return pairs


def differ(left: Variable, right: Variable) -> bool:
    return left.spec.shape != right.spec.shape


def same_places(left: Registry, right: Registry) -> bool:
    """Whether every variable has the same place, memory order and dtype in both, on one device."""
    if left.value_format != right.value_format or left.device != right.device:
        return False
    if len(left.variables) != len(right.variables):
        return False
    spans = zip(left.layout.spans, right.layout.spans, strict=True)
    return all(a.offset == b.offset and places(a.spec) == places(b.spec) for a, b in spans)


def places(spec: object) -> tuple[object, ...]:
    return spec.name, spec.shape, spec.stride, spec.dtype  # type: ignore[attr-defined]


def clone_into(target: Registry, source: Registry) -> None:
    """Declares copies of all variables of `source`: values, masks, groups and ids; no gradients."""
    source.check_aliases()
    for variable in source.variables:
        value = variable.value.clone()
        trains = variable.requires_grad
        param = nn.Parameter(value, trains) if not variable.is_buffer else value
        copy = take_over(target, variable, param, list(variable.names))
        copy.id = variable.id
    target.settle()
    for copy, variable in zip(target.variables, source.variables, strict=True):
        target.masks.take(copy, source.masks.of(variable))
        if source.is_encoded(variable):
            target.write(copy, source.read(variable))
    target._next_id = source._next_id


def take_over(registry: Registry, origin: Variable, param: Tensor, names: list[str]) -> Variable:
    """Declares a variable that takes over all of another one but its places, gradient and state."""
    spec = dataclasses.replace(origin.spec, name=names[0])
    variable = registry.declare(spec, param, names, origin.group)
    variable.frozen, variable.initializer = origin.frozen, origin.initializer
    variable.is_leaf = origin.is_leaf and param is origin.param
    return variable


@torch.no_grad()
def merge_into(target: Registry, sources: Sequence[tuple[Registry, str]]) -> None:
    """See `VarStore.merge`. The sources are retired; what their parameters are called and hold stays."""
    check_merge(target.device, sources)
    for registry, _ in sources:
        registry.check_aliases()
        registry.settle()
        registry.check_leaving("merging the store")
    moved = [(variable, prefix, variable.grad) for registry, prefix in sources for variable in registry.variables]
    masks = [registry.masks.of(variable) for registry, _ in sources for variable in registry.variables]
    exact = [exactly(registry, variable) for registry, _ in sources for variable in registry.variables]
    for registry, prefix in sources:
        for module, adopted in registry.adopted.items():
            target.adopted[module] = adopted._replace(prefix=_joined(prefix, adopted.prefix))
    for registry, _ in sources:
        registry.retire(
            "the variables of this store were merged into another one; use the store that VarStore.merge returned, and "
            "make a new optimizer for it"
        )
    for origin, prefix, grad in moved:
        variable = take_over(target, origin, origin.param, [prefix + name for name in origin.names])
        variable.places = origin.places
        # A copy: it may be a view of the gradient stream that goes with the old store.
        variable.param.grad = None if grad is None else grad.to(variable.dtype, copy=True)
    target.settle()
    for variable, mask, numbers in zip(target.variables, masks, exact, strict=True):
        target.masks.take(variable, mask)
        if numbers is not None:
            target.write(variable, numbers)
    hand_over(target, [registry for registry, _ in sources])


def exactly(registry: Registry, variable: Variable) -> Tensor | None:
    """The numbers of a variable whose Parameter does not show all of them."""
    return registry.read(variable) if registry.is_encoded(variable) else None


def _joined(prefix: str, inner: str) -> str:
    return (prefix + inner).removesuffix(".")


def check_merge(device: torch.device, sources: Sequence[tuple[Registry, str]]) -> None:
    """Raises before anything is touched."""
    seen: set[str] = set()
    for registry, prefix in sources:
        registry.check_usable()
        for variable in registry.variables:
            dataclasses.replace(variable.spec, name=prefix + variable.name)  # refuses a prefix that makes no name
        if registry.device != device:
            raise FlatvarsError(f"All VarStores must be on the same device, got {device} and {registry.device}")
        for name in (prefix + name for name in registry.by_name):
            if name in seen:
                raise NameTakenError(
                    f"Duplicate variable name found: {name}. Provide a unique prefix to allow merge operation"
                )
            seen.add(name)
    if len({id(registry) for registry, _ in sources}) != len(sources):
        raise FlatvarsError("a store was given twice; a merge takes the variables out of the stores it is given")


def ravel(registry: Registry) -> Tensor:
    """See `VarStore.ravel`."""
    registry.check_aliases()
    values = [registry.read(v).reshape(-1) for v in registry.variables]
    if not values:
        return torch.zeros(0, dtype=torch.float32, device=registry.device)
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    return torch.cat([value.to(dtype) for value in values])


def unravel(registry: Registry, vector: Tensor) -> dict[str, Tensor]:
    """See `VarStore.unravel`."""
    sizes = [v.spec.numel for v in registry.variables]
    if vector.dim() != 1 or len(vector) != sum(sizes):
        raise SpecError(
            f"a vector of shape {tuple(vector.shape)} was given, but the store's {len(sizes)} variables have "
            f"{sum(sizes)} elements: give what ravel() returns, [{sum(sizes)}]"
        )
    pieces = torch.split(vector, sizes)
    dtype_of = registry.number_dtype
    return {
        v.name: piece.view(v.spec.shape).to(dtype_of(v)) for v, piece in zip(registry.variables, pieces, strict=True)
    }
