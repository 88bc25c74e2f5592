"""Initialization: one launch writes all variables of a stream, each by its own kind, numbers and key.

    x[i] = draw(words(seed, key, i))        i: row-major index in the variable, whatever the memory order

Traffic: each element written once, 4 B in float32; nothing read but 32 B a tile and a row a variable.
Numerics: random values in float32 by single IEEE operations (`distributions.py`), the bits of Triton's kernel; rounded
last, to nearest even, or widened in float64 streams. Constants are rounded once.
Aliasing: writes the elements of its variables and no padding; variables of one launch must not overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from torch import Tensor

from .. import distributions
from ..fills import AXES_AT, CONSTANT, DIAGONAL, HEAD, NORMAL, PER_BLOCK, UNIFORM, Fill, fill_tables
from .compile import compiled, float_type, native, twin, wide_vectors
from .formats import FORMATS, name_of
from .gradients import TILE
from .memory import caller, element_store, fetch_add, read_double, read_float, read_int, stack, write_float
from .philox import block_writer, complement, quarter_turn, unsigned, upper_bits, write_blocks
from .record import DONE, NEXT, RecordLayout
from .threads import POOL, callable_of, wait

LAYOUT = RecordLayout(
    "tiles",  # address of [count, 4] int64: start, local, length, variable
    "variables",  # address of [variables, columns] int64: `fills.variable_rows`
    "columns",
    "axes",  # room for them in a row
    "stream",  # address of [numel] out
    "draw",  # address of the function that makes random values
)
word = LAYOUT.reader()
# Making a value takes as long as moving so many bytes: some 4 ns.
BYTES_A_VALUE = 64


_DRAWER = [types.int64] * 4
call_drawer = caller(_DRAWER)


@functools.cache
def drawer() -> Any:
    """Machine code of `(row, local, length, memory)`: random float32 values of a tile, in the place of their words."""
    normal_pair = twin(distributions.normal_pair, np.float32)
    scale_uniform, truncated = twin(distributions.scale_uniform, np.float32), twin(distributions.truncated, np.float32)
    unit, writer = np.float32(2.0**-24), block_writer()

    @compiled
    def parameter(row: Any, i: Any) -> Any:
        return np.float32(read_double(row, HEAD + i))

    @compiled
    def normal(row: Any, count: Any, memory: Any) -> None:
        wide_vectors()
        mean, std = parameter(row, 0), parameter(row, 1)
        for i in range(count // 2):
            turn, swap, sign = quarter_turn(memory, 2 * i + 1)
            x, y = normal_pair(unsigned(memory, 2 * i), turn, swap, sign)
            write_float(memory, 2 * i, mean + std * x)
            write_float(memory, 2 * i + 1, mean + std * y)

    @compiled
    def uniform(row: Any, count: Any, memory: Any) -> None:
        wide_vectors()
        low, width, top = parameter(row, 0), parameter(row, 1), parameter(row, 2)
        for i in range(count):
            write_float(memory, i, scale_uniform(upper_bits(memory, i) * unit, low, width, top))

    @compiled
    def cut(row: Any, count: Any, memory: Any) -> None:
        wide_vectors()
        left, right, width = parameter(row, 0), parameter(row, 1), parameter(row, 2)
        mean, std, low, high = parameter(row, 3), parameter(row, 4), parameter(row, 5), parameter(row, 6)
        for i in range(count):
            below, above = unsigned(memory, i), complement(memory, i)
            write_float(memory, i, truncated(below, above, left, right, width, mean, std, low, high))

    def draw(row: Any, local: Any, length: Any, memory: Any) -> None:
        kind, seed, key, block = read_int(row, 0), read_int(row, 1), read_int(row, 2), local // PER_BLOCK
        blocks = (length + PER_BLOCK - 1) // PER_BLOCK
        write_blocks(writer(), memory, blocks, seed, key, block, 0, 0, 0)
        if kind == NORMAL:
            normal(row, blocks * PER_BLOCK, memory)
        elif kind == UNIFORM:
            uniform(row, blocks * PER_BLOCK, memory)
        else:
            cut(row, blocks * PER_BLOCK, memory)

    return native(draw, types.void(*_DRAWER))


@compiled
def position_of(row: Any, axes: Any, index: Any) -> Any:
    """Where an element lies whose variable is in another memory order than that of indices."""
    position = read_int(row, 5)
    for i in range(axes):
        axis = AXES_AT + 2 * (axes - 1 - i)
        length = read_int(row, axis)
        position += index % length * read_int(row, axis + 1)
        index //= length
    return position


@compiled
def on_diagonal(row: Any, index: Any) -> Any:
    columns, inner, center, period = (
        read_int(row, HEAD),
        read_int(row, HEAD + 1),
        read_int(row, HEAD + 2),
        read_int(row, HEAD + 3),
    )
    outer = index // inner
    return outer // columns % period == outer % columns and index % inner == center


@functools.cache
def kernel(stream: str) -> Any:
    """Machine code of `(record, leader) -> finished` for a stream of this format."""
    dtype = np.float64 if stream == "float64" else np.float32
    store = element_store(FORMATS[stream], float_type(dtype), 1, 0)
    room, zero, one = stack(4 * TILE), dtype(0.0), dtype(1.0)

    @compiled
    def value(row: Any, kind: Any, index: Any, lane: Any, memory: Any) -> Any:
        if kind == DIAGONAL:
            return one if on_diagonal(row, index) else zero
        return dtype(read_double(row, HEAD)) if kind == CONSTANT else dtype(read_float(memory, lane))

    @compiled
    def fill_wide(target: Any, row: Any, kind: Any, start: Any, local: Any, length: Any, memory: Any) -> None:
        if kind == CONSTANT:
            constant = dtype(read_double(row, HEAD))
            for lane in range(length):
                store(target, start + lane, constant)
        elif kind == DIAGONAL:
            for lane in range(length):
                store(target, start + lane, one if on_diagonal(row, local + lane) else zero)
        else:
            for lane in range(length):
                store(target, start + lane, dtype(read_float(memory, lane)))

    @compiled
    def fill_tile(record: Any, tile: Any, memory: Any) -> None:
        place = word(record, "tiles") + 32 * tile
        start, local, length = read_int(place, 0), read_int(place, 1), read_int(place, 2)
        row = word(record, "variables") + 8 * word(record, "columns") * read_int(place, 3)
        kind, target, axes = read_int(row, 0), word(record, "stream"), word(record, "axes")
        if kind != CONSTANT and kind != DIAGONAL:
            call_drawer(word(record, "draw"), row, local, length, memory)
        if read_int(row, 3) != 0:
            fill_wide(target, row, kind, start, local, length, memory)
            return
        for lane in range(max(0, read_int(row, 4) - local), length):
            index = local + lane
            store(target, position_of(row, axes, index), value(row, kind, index, lane, memory))

    def run(record: Any, leader: Any) -> Any:
        # The first look is at the counter alone: who comes too late may find the rest gone.
        count, chunk, memory = word(record, "count"), word(record, "chunk"), room()
        first = fetch_add(record + 8 * NEXT, chunk)
        while first < count:
            last = min(first + chunk, count)
            for tile in range(first, last):
                fill_tile(record, tile, memory)
            fetch_add(record + 8 * DONE, last - first)
            first = fetch_add(record + 8 * NEXT, chunk)
        return leader != 0 and wait(record, count)

    return native(run, types.int64(types.int64, types.int64))


def fill(stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
    """Writes all of `fills` into a stream: one launch.

    Args:
        stream: [numel], contiguous.
        fills: Variables with elements, which do not overlap; at least one.
        seed: First word of the generator's key, in [0, 2^64).
    """
    code = kernel(name_of(stream.dtype))
    tiles, variables, axes = fill_tables(fills, seed, TILE)
    random = any(each.draw.is_random for each in fills)
    record = LAYOUT.fill(
        tiles=tiles.ctypes.data,
        count=len(tiles),
        variables=variables.ctypes.data,
        columns=variables.shape[1],
        axes=axes,
        stream=stream.data_ptr(),
        draw=drawer().address if random else 0,
    )
    POOL.launch(callable_of(code), record, BYTES_A_VALUE * sum(each.count for each in fills))
