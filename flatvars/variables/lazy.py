"""Lazy tensors: parameters and buffers of a module that get their shapes, and values, in its first forward pass.

A store that adopted their module waits for them: each becomes a variable with the first look after it has a shape, with
its name and at its place among those of the module. torch makes the same object a Parameter with a shape, so whoever
holds it, a param group among them, need not be told.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..errors import AliasError
from ..memory.spec import VarSpec, contiguous_stride, is_dense
from .claims import owner_of
from .following import why_unheld
from .places import Place
from .variable import Variable


def is_lazy(tensor: Tensor) -> bool:
    """Whether a tensor has no shape yet."""
    return isinstance(tensor, UninitializedTensorMixin)


@dataclass(frozen=True)
class Late:
    """A lazy tensor that a registry waits for.

    Attributes:
        names: As its variable will have them.
        places: Where modules hold it.
        is_parameter: Not a buffer.
        order: First names of all tensors of its module, itself among them.
    """

    names: list[str]
    places: list[Place]
    is_parameter: bool
    order: Sequence[str]

    def tensor(self) -> Tensor | None:
        """What stands at its places now, if anything does."""
        return next((tensor for place in self.places if (tensor := place.tensor()) is not None), None)

    def spec(self, tensor: Tensor) -> VarSpec:
        """Of its variable, by the tensor that has a shape now.

        Raises:
            AliasError: no store can hold what stands at its place now.
        """
        if reason := why_unheld(tensor):
            raise AliasError(f"the store cannot take variable {self.names[0]!r} in, which was lazy: {reason}")
        shape, stride = tuple(tensor.shape), tensor.stride()
        stride = stride if is_dense(shape, stride) else contiguous_stride(shape)
        room = self.is_parameter and tensor.requires_grad
        return VarSpec(self.names[0], shape, tensor.dtype, stride, has_room=room)


class Waiter(Protocol):
    """Whoever waits for lazy tensors."""

    late: list[Late]
    device: torch.device


_waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()


def wait_for(registry: Waiter, late: Iterable[Late], dtype: torch.dtype | None) -> None:
    """Makes a registry wait for tensors, and no other one any more.

    Args:
        dtype: To convert floating ones to, as the tensors are that were adopted with them.
    """
    for each in late:
        tensor = each.tensor()
        assert tensor is not None
        for other in list(_waiters):
            other.late = [one for one in other.late if one.tensor() is not tensor]
        kind = tensor.dtype if dtype is None or not tensor.dtype.is_floating_point else dtype
        if (kind, registry.device) != (tensor.dtype, tensor.device):
            tensor.data = torch.empty(0, dtype=kind, device=registry.device)
        registry.late.append(each)
        _waiters.add(registry)


def awaited_by(tensor: Tensor) -> Waiter | None:
    """Who waits for a lazy tensor."""
    if not is_lazy(tensor):
        return None
    return next((one for one in list(_waiters) if any(late.tensor() is tensor for late in one.late)), None)


def ready(waiting: Iterable[Late]) -> tuple[list[tuple[Late, Tensor]], list[Late]]:
    """Those that have a shape now, and those that have none yet. What is gone, or in a store already, is neither."""
    found, rest = [], []
    for late in waiting:
        tensor = late.tensor()
        if tensor is None:
            continue
        if is_lazy(tensor):
            rest.append(late)
        elif owner_of(tensor) is None:
            found.append((late, tensor))
    return found, rest


def put_in_place(variables: Sequence[Variable], late: Mapping[Variable, Late]) -> list[Variable]:
    """Variables in the order in which their modules have them, though some of them came late."""
    ordered = [variable for variable in variables if variable not in late]
    for variable in (variable for variable in variables if variable in late):
        order = late[variable].order
        here = order.index(late[variable].names[0])
        at = {one.name: k for k, one in enumerate(ordered)}
        before = next((at[name] + 1 for name in reversed(order[:here]) if name in at), None)
        behind = next((at[name] for name in order[here + 1 :] if name in at), len(ordered))
        ordered.insert(behind if before is None else before, variable)
    return ordered
