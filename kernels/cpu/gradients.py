"""Gradients of a tile as numbers of the arithmetic: where they lie if they are such, else converted on the stack.

And -0.0 in their place, once they were read: the tile is in the first-level cache then.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba import types

from ..addresses import Sources
from ..launches import Tables
from ..segments import Segments
from .compile import compiled, float_type, native, wide_vectors
from .formats import FORMATS, name_of
from .memory import caller, element_load, element_store, read_byte, write_int, write_int16, write_int32

# Elements of a tile, as in the fixed slots of norms.
TILE = 2_048


@functools.cache
def converter(name: str, dtype: type) -> Any:
    """Converts `count` numbers of a format, times `factor`, and zero where `frozen`, an address or 0, has a byte."""
    load = element_load(FORMATS[name], float_type(dtype), 2, 0)
    store = element_store(FORMATS[np.dtype(dtype).name], float_type(dtype), 2, 1)
    zero = dtype(0.0)

    @compiled
    def convert(source: Any, target: Any, count: Any, factor: Any, frozen: Any) -> None:
        wide_vectors()
        if frozen == 0:
            for i in range(count):
                store(target, i, load(source, i) * factor)
        else:
            for i in range(count):
                x = load(source, i) * factor
                store(target, i, zero if read_byte(frozen, i) != 0 else x)

    return convert


@functools.cache
def converter_of(dtype: type) -> int:
    """Address of `(gradients, code, count, factor, frozen, target)`, which converts a tile of any format.

    A function of its own, which launches call: compiled into each of them, it would take longer than all else.
    """
    to_float32, to_bfloat16, to_float16, to_float64 = (converter(name, dtype) for name in FORMATS)

    def convert(gradients: Any, code: Any, count: Any, factor: Any, frozen: Any, target: Any) -> None:
        if code == 0:
            to_float32(gradients, target, count, factor, frozen)
        elif code == 1:
            to_bfloat16(gradients, target, count, factor, frozen)
        elif code == 2:
            to_float16(gradients, target, count, factor, frozen)
        else:
            to_float64(gradients, target, count, factor, frozen)

    return int(native(convert, types.void(*_converter_arguments(dtype))).address)


def _converter_arguments(dtype: type) -> list[Any]:
    word = types.int64
    return [word, word, word, float_type(dtype), word, word]


@compiled
def size_of(code: Any) -> Any:
    """Bytes of a gradient."""
    return 4 if code == 0 else (8 if code == 3 else 2)


def read_as(sources: Sources, tables: Tables) -> str | None:
    """The format of gradients that a step's loop is compiled for: None is that of the arithmetic, or says several."""
    return None if sources.dtype in (None, tables.compute_dtype) else name_of(sources.dtype)


def tile_source(dtype: type) -> Any:
    """`(address, code, local, count, factor, frozen, scratch, converter) -> address` of `count` gradients in `dtype`.

    They lie in `scratch` where something had to be done to them, else where they are: `factor` is 1 and none is frozen.
    """
    plain = FORMATS[np.dtype(dtype).name].code
    call = caller(_converter_arguments(dtype))
    one = dtype(1.0)

    @compiled
    def source(
        address: Any, code: Any, local: Any, count: Any, factor: Any, frozen: Any, scratch: Any, converter: Any
    ) -> Any:
        gradients = address + local * size_of(code)
        if code == plain and factor == one and frozen == 0:
            return gradients
        call(converter, gradients, code, count, factor, frozen, scratch)
        return scratch

    return source


_WRITERS = {2: write_int16, 4: write_int32, 8: write_int}

ERASER_ARGUMENTS = [types.int64, types.int64]


@functools.cache
def eraser_of(dtype: torch.dtype) -> int:
    """Address of `(gradients, count)`, which writes -0.0 over a tile of gradients of a dtype, up to the end of a line.

    A variable shares its last line with no other.
    """
    write, line, mark = _WRITERS[dtype.itemsize], Segments.LINE // dtype.itemsize, -(1 << (8 * dtype.itemsize - 1))

    def erase(gradients: Any, count: Any) -> None:
        wide_vectors()
        for i in range((count + line - 1) // line * line):
            write(gradients, i, mark)

    return int(native(erase, types.void(*ERASER_ARGUMENTS)).address)
