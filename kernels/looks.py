"""How some tensors look, or what lies in their `.grad`, and whether they look so still, in one call for all of them.

Every step asks this of every variable, and nearly always the answer is that nothing changed. Who gets another answer,
or none, looks at each tensor in Python; so this is never needed, and only fast.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

FEWEST = 64
"""Tensors that are worth it: for fewer, compiling these functions takes longer than ten thousand steps save."""

ADDRESS = 0
"""First column of a row of looks: all that follows it is how a tensor lies, and what it is."""


@functools.cache
def _looks() -> Any:
    """The functions of `cpu/looks.py`, imported when first needed, with Numba; None where they do not work."""
    from .cpu import looks

    return looks.load()


def are_same(left: list[Any], right: list[Any]) -> bool:
    """Whether two lists hold the same objects in one order: by identity, not by what is equal.

    Of few objects, and before anything was looked at, Python tells it, which takes 25 ns each, and more of an object
    that lies far away: here, none is touched.

    Example:
        >>> first, second = [1], [1]
        >>> are_same([first, second], [first, second]), are_same([first, second], [second, first])
        (True, False)
    """
    count = len(left)
    if count != len(right):
        return False
    if count < FEWEST or not _looks.cache_info().currsize or (functions := _looks()) is None:
        return all(map(is_, left, right))
    found: int = functions.same(id(left), id(right))
    return found == 1


class Looks:
    """Of some tensors, in their order.

    Args:
        tensors: Held as long as this object is. Those of classes of their own may say what they like, and are not
            looked at.
        of_grad: Whether what lies in `.grad` of each is looked at.
        are_grads: Whether they are gradients, of which dtype and length count too.
    """

    def __init__(self, tensors: Sequence[Tensor], of_grad: bool = False, are_grads: bool = False) -> None:
        self._tensors = list(tensors)
        self._of_grad = 2 if are_grads else int(of_grad)
        plain = len(self._tensors) >= FEWEST and {Tensor, nn.Parameter}.issuperset(map(type, self._tensors))
        self._functions = _looks() if plain else None
        self._noted: npt.NDArray[np.int64] | None = None
        if self._functions is not None:
            from .cpu.looks import COMPARE, MOST_AXES, NAMES, RENEW, WRITE, words_of

            self._words = words_of(self._tensors)
            self._compare, self._renew, self._write = COMPARE, RENEW, WRITE
            self._width = NAMES + 2 * min(max(map(Tensor.dim, self._tensors)), MOST_AXES)

    def look(self) -> npt.NDArray[np.int64] | None:
        """A row each, or None where that cannot be told."""
        if self._functions is None:
            return None
        rows = np.zeros((len(self._words), self._width), dtype=np.int64)
        return rows if self._functions.look(*self._question(rows), self._write) else None

    def _question(self, rows: npt.NDArray[np.int64]) -> tuple[int, ...]:
        return self._words.ctypes.data, len(rows), self._of_grad, rows.ctypes.data, self._width

    @property
    def can_tell(self) -> bool:
        """Whether it is ever told how they look."""
        return self._functions is not None

    def note(self) -> bool:
        """Keeps in mind how they look now, and returns whether that could be told."""
        self._noted = self.look()
        return self._noted is not None

    def moved(self) -> tuple[bool, npt.NDArray[np.int64]] | None:
        """Where they lie now, if they look as noted in all but that, and notes it; None if not: nothing is noted then.

        Returns:
            Whether one lies elsewhere than noted, and the addresses of all, valid until the next call: 0 of tensors
            without elements, and of gradients that are not there.
        """
        if self._functions is None or self._noted is None:
            return None
        found = self._functions.look(*self._question(self._noted), self._renew)
        if not found:
            self._noted = None
            return None
        return found == 2, self._noted[:, ADDRESS]

    def unchanged(self) -> bool:
        """Whether they look as noted, in all that is looked at."""
        if self._functions is None or self._noted is None:
            return False
        found: int = self._functions.look(*self._question(self._noted), self._compare)
        return found == 1

    def count(self) -> None:
        """Adds one to the version of each, as a write in place does."""
        if self._functions is None:
            torch.autograd.graph.increment_version(self._tensors)
        else:
            self._functions.count(self._words.ctypes.data, len(self._words))

    def hold(
        self,
        others: Looks,
        addresses: npt.NDArray[np.int64],
        versions: npt.NDArray[np.int64] | None,
        before: npt.NDArray[np.int64] | None = None,
    ) -> tuple[bool, bool]:
        """Whether what lies in `.grad` of each of these is the other's tensor, and lies at its address.

        Args:
            versions: Is given the version of each of the others' tensors.
            before: Versions as they were.

        Returns:
            That, and whether each is another version than before. False also where it cannot be told; `versions` holds
            anything then.
        """
        if self._functions is None or others._functions is None:
            return False, False
        counts = [0 if each is None else each.ctypes.data for each in (versions, before)]
        words = self._words.ctypes.data, len(self._words), others._words.ctypes.data
        found: int = self._functions.hold(*words, addresses.ctypes.data, *counts)
        return found > 0, found == 2
