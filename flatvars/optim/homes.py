"""A home for parameters that no store holds: a store is made for the optimizer that is given them, and grows with it.

Such a store is kept by the optimizers over it alone. It gives its variables the names that came with the parameters, or
numbers; what a store knows of modules (names in errors, replaced modules, buffers) it learns from `watch(module)`.
Nothing moves before the first step: until then the parameters are declared only, and keep their own memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..gradients.attached import make_registry
from ..modules.declare import check_unshared
from ..modules.tensors import Found, check_memory, check_private, make_spec
from ..variables.lazy import awaited_by, is_lazy
from ..variables.registry import Registry, variable_of
from .membership import explain_foreign


class GivenParam(NamedTuple):
    """A parameter as an optimizer was given it, with its name if it has one."""

    name: str | None
    tensor: Tensor


def given_in(group: Mapping[str, Any]) -> list[GivenParam]:
    """The parameters of a group, which may be pairs with their names."""
    params = group["params"]
    found = []
    for item in [params] if isinstance(params, Tensor) else params:
        if isinstance(item, Tensor):
            found.append(GivenParam(None, item))
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
            found.append(GivenParam(str(item[0]), item[1]))
    return found


def home_of(given: Sequence[GivenParam]) -> Registry | None:
    """The registry that holds parameters, a new one if none does; None without any.

    Those that have no home join the others in theirs, if that was made for an optimizer. Lazy ones are no one's before
    they have a shape: the store that adopted their module takes them in, or else one that was made for an optimizer.

    Raises:
        ForeignParameterError: they lie in two stores, or in one that was adopted by hand and in none.
        SpecError: a parameter that no store can hold. Nothing has changed in either case.
    """
    held = [(found[0], one.tensor) for one in given if (found := variable_of(one.tensor)) is not None]
    home = held[0][0] if held else None
    for registry, tensor in held:
        if registry is not home:
            explain_foreign(tensor, home, "no optimizer was made")
    lazy = [one for one in given if is_lazy(one.tensor)]
    waiting = [awaited_by(one.tensor) for one in lazy]
    home = home or next((registry for registry in waiting if isinstance(registry, Registry)), None)
    homeless = [one for one in given if variable_of(one.tensor) is None and not is_lazy(one.tensor)]
    if homeless or (home is None and lazy):
        if home is None:
            home = make_registry((homeless or lazy)[0].tensor.device, "gather")
            home.made_for_optimizer = True
        elif not home.made_for_optimizer:
            explain_foreign(homeless[0].tensor, home, "no optimizer was made")
        admit(home, homeless)
    return home


def admit(registry: Registry, given: Iterable[GivenParam]) -> None:
    """Declares parameters that no store holds, each once.

    Raises:
        SpecError: one that no store can hold; nothing has changed then.
    """
    with registry.lock:
        registry.check_usable()
        taken: set[str] = set()
        found: list[tuple[Found, bool]] = []
        for one in {id(one.tensor): one for one in given}.values():
            name = _free(registry, one.name or str(len(registry.variables) + len(found)), taken)
            taken.add(name)
            found.append((Found(_checked(registry, name, one.tensor), [name]), not one.name))
        check_memory([entry for entry, _ in found])
        check_private([entry for entry, _ in found])
        specs = [make_spec(entry, None) for entry, _ in found]
        for entry, _ in found:
            check_unshared(registry, entry.names[0], entry.tensor)
        for spec, (entry, numbered) in zip(specs, found, strict=True):
            room = entry.tensor.requires_grad and spec.dtype.is_floating_point
            variable = registry.declare(dataclasses.replace(spec, has_room=room), entry.tensor, entry.names)
            variable.is_leaf = not isinstance(entry.tensor, nn.Parameter)
            variable.is_numbered = numbered


def _free(registry: Registry, name: str, taken: set[str]) -> str:
    """A name that can be one and is not in use: its empty parts become "_", and a number is added."""
    name = free = ".".join(part or "_" for part in name.split("."))
    number = len(registry.variables) + len(taken)
    while free in registry.by_name or free in taken:
        free = f"{name}__{number}"
        number += 1
    return free


def _checked(registry: Registry, name: str, tensor: Tensor) -> Tensor:
    """A tensor that a new variable can be.

    Raises:
        ValueError: torch's, for what was computed.
        SpecError: it lies on another device, or nowhere.
    """
    if not tensor.is_leaf:
        raise ValueError(
            f"can't optimize a non-leaf Tensor: parameter {name!r} of shape {tuple(tensor.shape)} was computed; give "
            "the tensor it was computed from, or its detach().requires_grad_()"
        )
    if tensor.is_meta:
        raise SpecError(
            f"parameter {name!r} is on the meta device and has no values; give it memory first, or adopt its module "
            "with VarStore.from_module(module, device=...), which initializes it"
        )
    if tensor.device != registry.device:
        raise SpecError(
            f"parameter {name!r} lies on {tensor.device} and others on {registry.device}; an optimizer steps one "
            "device: make one for each"
        )
    return tensor


def forget_leavers(registry: Registry, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Lets go of what no optimizer has any more, neither in a group nor in its state, and no module that is known.

    Parameters that users exchange for others, as Gaussian splatting does, would pile up else.
    """
    kept: set[int] = set()
    for optimizer in optimizers:
        kept.update(id(one.tensor) for group in optimizer.param_groups for one in given_in(group))
        kept.update(map(id, optimizer.state))
    leavers = [v for v in registry.variables if id(v.param) not in kept and not v.places and not v.is_buffer]
    if leavers:
        registry.remove(leavers)
