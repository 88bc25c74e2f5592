"""Norms of every variable, of its value and its gradient, in one launch.

    out[i, 0] = ||value_i||_p        out[i, 1] = ||grad_i||_p        for p = 1, 2, inf or any p > 0

Traffic: 4 B read per float32 value and per float32 gradient; 1 B per gradient more where elements are masked.
Numerics: a tile in float32 (float64 for float64 regions) in the order of `sums.py`, tiles in double, in their order:
the same bits for any number of threads. |x|^p for p other than 1, 2 and inf by our own exponential and logarithm, about
1e-6 relative.
Aliasing: reads only. Padding counts in no norm, and masked elements in none of a gradient. A variable without a
gradient has norm 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import types
from torch import Tensor

from ..addresses import CODE_OF, Sources
from ..lang import power
from ..launches import Tables
from .compile import DTYPES, compiled, float_type, native, twin
from .formats import FORMATS
from .gradients import TILE, converter_of, tile_source
from .memory import element_load, element_store, fetch_add, read_double, read_int, stack, write_double, write_float
from .record import DONE, NEXT, RecordLayout, address_of, bits_of
from .sums import reduction
from .threads import POOL, callable_of, wait

LAYOUT = RecordLayout(
    "tiles",  # address of [tiles, 5] int64
    "variables",  # address of [variables, 3] int64: first tile, number of tiles, slot
    "variable_count",
    "sources",  # address of [variables, 2] int64: address (0: none) and dtype code; or 0
    "converter",  # address of the function for numbers of other dtypes
    "values",  # address of [numel], or 0
    "value_code",  # of their dtype
    "frozen",  # address of uint8 [numel], or 0
    "order",  # float64
    "partials",  # address of float64 [2, tiles], scratch
    "out",  # address of [variables, 2] out
)
word, number = LAYOUT.reader(), LAYOUT.number_reader()

# How each order treats the elements of a tile; all others take a power first.
KINDS = {1.0: "absolutes", 2.0: "squares", math.inf: "maximum"}


@functools.cache
def kernel(kind: str, dtype: type) -> Any:
    """Machine code of `(record, leader) -> finished`."""
    source, tile_norm, finish = tile_source(dtype), _tile_norm(kind, dtype), _finisher(kind, dtype)
    room, one = stack(TILE * np.dtype(dtype).itemsize), dtype(1.0)

    @compiled
    def value_norm(record: Any, row: Any, memory: Any) -> Any:
        values, code, count = word(record, "values"), word(record, "value_code"), read_int(row, 2)
        place = source(values, code, read_int(row, 0), count, one, 0, memory, word(record, "converter"))
        return tile_norm(place, count, number(record, "order"), memory)

    @compiled
    def gradient_norm(record: Any, row: Any, memory: Any) -> Any:
        entry = word(record, "sources") + 16 * read_int(row, 3)
        address, count, frozen = read_int(entry, 0), read_int(row, 2), word(record, "frozen")
        if address == 0:
            return 0.0
        if frozen != 0:
            frozen += read_int(row, 0)
        converter = word(record, "converter")
        place = source(address, read_int(entry, 1), read_int(row, 1), count, one, frozen, memory, converter)
        return tile_norm(place, count, number(record, "order"), memory)

    def run(record: Any, leader: Any) -> Any:
        # The first look is at the counter alone: who comes too late may find the rest gone.
        count, chunk, memory = word(record, "count"), word(record, "chunk"), room()
        first = fetch_add(record + 8 * NEXT, chunk)
        if first < count:
            partials = word(record, "partials")
            while first < count:
                last = min(first + chunk, count)
                for tile in range(first, last):
                    row = word(record, "tiles") + 40 * tile
                    if word(record, "values") != 0:
                        write_double(partials, tile, value_norm(record, row, memory))
                    if word(record, "sources") != 0:
                        write_double(partials, count + tile, gradient_norm(record, row, memory))
                fetch_add(record + 8 * DONE, last - first)
                first = fetch_add(record + 8 * NEXT, chunk)
        if leader == 0 or not wait(record, count):
            return 0
        finish(record)
        return 1

    return native(run, types.int64(types.int64, types.int64))


def _tile_norm(kind: str, dtype: type) -> Any:
    """`(place, count, order, memory) -> sum or maximum` of a tile, as float64."""
    compute = float_type(dtype)
    if kind != "powers":
        reduce = reduction(kind, compute)

        @compiled
        def norm(place: Any, count: Any, order: Any, memory: Any) -> Any:
            return np.float64(reduce(place, count))

        return norm
    plain = FORMATS[np.dtype(dtype).name]
    load, store = element_load(plain, compute, 2, 0), element_store(plain, compute, 2, 1)
    reduce, raised = reduction("plain", compute), twin(power, dtype)

    @compiled
    def power_norm(place: Any, count: Any, order: Any, memory: Any) -> Any:
        exponent = dtype(order)
        for i in range(count):
            store(memory, i, raised(abs(load(place, i)), exponent))
        return np.float64(reduce(memory, count))

    return power_norm


def _finisher(kind: str, dtype: type) -> Any:
    """`(record)`: brings the tiles of every variable together, and takes the root."""
    root, maximum, squares = twin(power, np.float64), kind == "maximum", kind == "squares"
    powers, write = kind == "powers", write_double if dtype is np.float64 else write_float

    @compiled
    def total_of(partials: Any, first: Any, count: Any, order: Any) -> Any:
        total = 0.0
        for tile in range(first, first + count):
            x = read_double(partials, tile)
            if not maximum:
                total += x
            elif x > total or x != x:
                total = x
        if squares:
            return math.sqrt(total)
        return root(total, 1.0 / order) if powers else total

    @compiled
    def finish(record: Any) -> None:
        partials, count, order = word(record, "partials"), word(record, "count"), number(record, "order")
        for variable in range(word(record, "variable_count")):
            row = word(record, "variables") + 24 * variable
            first, tiles, out = read_int(row, 0), read_int(row, 1), word(record, "out")
            value = gradient = 0.0
            if word(record, "values") != 0:
                value = total_of(partials, first, tiles, order)
            if word(record, "sources") != 0:
                gradient = total_of(partials, count + first, tiles, order)
            write(out, 2 * variable, value)
            write(out, 2 * variable + 1, gradient)

    return finish


def launch(tables: Tables, values: Tensor | None, sources: Sources | None, order: float, out: Tensor) -> None:
    """See `Launches.norms`."""
    dtype = DTYPES[tables.compute_dtype]
    code = kernel(KINDS.get(order, "powers"), dtype)
    partials = np.empty(2 * tables.count)
    plain = (
        (values is None or values.dtype == tables.compute_dtype)
        and (sources is None or sources.dtype == tables.compute_dtype)
        and tables.frozen is None
    )
    size = np.dtype(dtype).itemsize * ((values is not None) + (sources is not None))
    record = LAYOUT.fill(
        tiles=tables.tiles.data_ptr(),
        count=tables.count,
        variables=tables.variables.data_ptr(),
        variable_count=len(tables.segments),
        sources=0 if sources is None else sources.table.data_ptr(),
        converter=0 if plain else converter_of(dtype),
        values=address_of(values),
        value_code=0 if values is None else CODE_OF[values.dtype],
        frozen=address_of(tables.frozen),
        order=bits_of(order),
        partials=partials.ctypes.data,
        out=out.data_ptr(),
    )
    POOL.launch(callable_of(code), record, size * tables.numel)
