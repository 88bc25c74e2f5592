"""The norm that an accumulation left: of which variables it is, and whether it still holds."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from .plans import PlanSet


class KnownNorm:
    """Of one set of variables, or of none.

    Attributes:
        exposed: The streams themselves were handed out: what they hold may change behind our back from now on, and no
            norm of it is known.
        lent: Views of them were. As long as somebody has one, or anything that was made of one, the same holds.
    """

    def __init__(self) -> None:
        self.exposed = self.lent = False
        self._noted: tuple[PlanSet, set[int], list[int]] | None = None

    def note(self, plans: PlanSet, variables: set[int], streams: Sequence[Tensor]) -> None:
        """The norm of these plans is that of what the streams hold of some variables now."""
        if self.lent:
            self.lent = not all(map(is_alone, streams))
        self._noted = plans, variables, [stream._version for stream in streams]

    def forget(self) -> None:
        self._noted = None

    def holds(self, variables: set[int], streams: Sequence[Tensor], generation: int) -> bool:
        """Whether the norm of just these variables is known, of streams that nobody has written since."""
        if self._noted is None or self.exposed or self.lent:
            return False
        plans, of, versions = self._noted
        now = [stream._version for stream in streams]
        return of == variables and plans.generation == generation and versions == now


def is_alone(tensor: Tensor) -> bool:
    """Whether no other tensor, array or storage object shares a tensor's memory; False also where none can tell."""
    alone = _alone()
    return alone is not None and _holders(tensor) == alone


def _holders(tensor: Tensor) -> tuple[int, int]:
    """How many tensors have its storage, and how many in Python have the object that stands for it."""
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)  # type: ignore[attr-defined]


@functools.cache
def _alone() -> tuple[int, int] | None:
    """What is counted of a tensor that shares its memory with none; None in a torch that counts otherwise."""
    if not hasattr(torch._C, "_storage_Use_Count"):
        return None
    sample = torch.zeros(2)
    first = _holders(sample)
    others = sample[1:], sample.data, sample[1:].numpy()
    shared = _holders(sample)
    del others
    again = _holders(sample)
    storage = sample.untyped_storage()
    held = _holders(sample)
    del storage
    counts_all = shared[0] == first[0] + 3 and held[1] == first[1] + 1
    return first if counts_all and first == again == _holders(sample) else None
