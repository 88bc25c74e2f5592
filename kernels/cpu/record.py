"""What a compiled launch is given: a row of 64-bit words, which it reads by position. A call passes its address alone.

Numba's own dispatcher looks at the type of every argument of every call, which takes longer than a small launch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from .memory import pointer

# Made and asked for its address in a tenth of the time that an array of NumPy's takes.
Words = ctypes.Array[ctypes.c_int64]

# Counters of a launch, each on a cache line of its own: threads add to them while others read the rest.
NEXT, DONE = 0, 8
FIRST = 16
_COUNTERS = (0,) * FIRST

# What all launches have: number of tiles, and how many of them a thread takes at a time, which each launch sets anew.
COUNT, CHUNK = FIRST, FIRST + 1
_SHARED = ("count", "chunk")


def row_of(words: Sequence[int]) -> Words:
    """Words in a row, for as long as somebody holds it."""
    return (ctypes.c_int64 * len(words))(*words)


class RecordLayout:
    """Names of the words of one kind of launch, besides the count of its tiles and the chunk."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.positions = {name: FIRST + position for position, name in enumerate((*_SHARED, *names))}

    def fill(self, *, count: int, **words: int) -> Words:
        """A row for launches of `count` tiles; every name must be given: addresses, counts, flags."""
        return row_of([*_COUNTERS, count, 0, *map(words.__getitem__, self.names)])

    def reader(self) -> Any:
        """`word(record, "name")` for compiled functions: an integer."""
        return self._reader(ir.IntType(64), types.int64)

    def number_reader(self) -> Any:
        """`number(record, "name")`: a float64, filled in by `bits_of`."""
        return self._reader(ir.DoubleType(), types.float64)

    def _reader(self, type_: Any, result: Any) -> Any:
        @intrinsic(prefer_literal=True)
        def read(typing: Any, record: Any, name: Any) -> Any:
            position = self.positions[name.literal_value]

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.load(pointer(builder, arguments[0], type_, ir.Constant(ir.IntType(64), position)))

            return result(types.int64, name), generate

        return read


def bits_of(number: float) -> int:
    """The bits of a float64, for a word that is one."""
    return int(np.float64(number).view(np.int64))


def address_of_row(row: Words) -> int:
    return ctypes.addressof(row)


def address_of(tensor: Tensor | None) -> int:
    """Of a tensor's first element; 0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()
