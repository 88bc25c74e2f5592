"""Which store a tensor belongs to: one table for all of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from .variable import Variable


class Owner(Protocol):
    """Whoever holds variables in creation order."""

    variables: list[Variable]


# Keyed by identity: a Parameter cannot be hashed by value, and a weak reference to it would forbid
# torch.utils.swap_tensors. An entry counts only while the owner still holds that very object.
_claims: dict[int, tuple[weakref.ref[Owner], int]] = {}


class Claims:
    """What one owner claims; forgotten when it is gone."""

    def __init__(self, owner: Owner) -> None:
        self._owner = weakref.ref(owner)
        self._ids: set[int] = set()
        weakref.finalize(owner, _forget, self._ids)

    def add(self, variables: Sequence[Variable]) -> None:
        """Notes that the variables' tensors, and those of which they are shards, belong to the owner."""
        held = {id(v.param): (self._owner, v.index) for v in variables}
        held.update((id(v.whole), (self._owner, v.index)) for v in variables if v.is_shard)
        _claims.update(held)
        self._ids.update(held)


def is_any_owned(tensors: Iterable[Tensor]) -> bool:
    """Whether any of some tensors may have an owner; False says that none has."""
    return not _claims.keys().isdisjoint(map(id, tensors))


def owner_of(tensor: Tensor) -> tuple[Owner, Variable] | None:
    """The owner of a tensor and the variable it is there, or None."""
    reference, index = _claims.get(id(tensor), (None, 0))
    owner = reference() if reference is not None else None
    if owner is None or index >= len(owner.variables):
        return None
    variable = owner.variables[index]
    return (owner, variable) if variable.param is tensor or variable.whole is tensor else None


def _forget(ids: set[int]) -> None:
    """Forgets tensors of an owner that is gone, unless another one claims an object of the same identity by now."""
    for key in ids:
        reference, _ = _claims.get(key, (None, 0))
        if reference is not None and reference() is None:
            del _claims[key]
