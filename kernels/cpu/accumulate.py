"""Gathers scattered gradients into the flat stream and takes their norm on the way: one launch, one pass.

    grads <- scale * source                 (overwrite: the first micro-batch; untouched variables become zeros)
    grads <- grads + scale * source         (add)
    norm alone divides by `grad_scale`, where a GradScaler scaled the loss
    norm  <- sqrt(sum of grads^2)           of what the launch leaves behind; nothing is stored without a stream

Traffic: overwrite 4 B read (source) + 4 B written; add 8 B read + 4 B written; norm alone 4 B read, per float32
parameter; 1 B more where elements are masked.
Numerics: float32 inside (float64 for float64 regions); the sum in the order of `squares.py`, which is Triton's.
Aliasing: the stream in place; sources may not overlap it. Masked elements count as 0 whatever they hold, and 0 is
stored for them. Padding is not touched.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from ..addresses import Sources
from ..launches import Again, NormSlot, Tables
from .compile import DTYPES, compiled, float_type, native, wide_vectors
from .formats import FORMATS, name_of
from .gradients import TILE, converter_of, tile_source
from .memory import (
    element_load,
    element_store,
    fetch_add,
    read_byte,
    read_float,
    read_int,
    read_int32,
    stack,
    write_byte,
)
from .prepared import Launcher, Prepared, read_of
from .record import DONE, NEXT, RecordLayout, address_of, bits_of
from .squares import Units, norm_writer, unit_squares, written_finder
from .threads import wait

LAYOUT = RecordLayout(
    "tiles",  # address of [tiles, 5] int64
    "sources",  # address of [variables, 2] int64: address (0: none) and dtype code
    "converter",  # address of the function for gradients of other dtypes
    "stream",  # address of [numel] in/out, or 0
    "add",  # flag
    "scale",  # float64
    "grad_scale",  # address of float32, or 0
    "frozen",  # address of uint8 [numel], or 0
    "firsts",  # address of int32 [tiles]: first unit of each
    "squares",  # address of [units], scratch
    "units",
    "written",  # address of uint8 [variables] out, zeros: which were written; 0 where nobody asks
    "sums",  # address of float64 [regions] out
    "slot",
    "norm",  # address of [] out
    "norm_is_double",
)
word, number = LAYOUT.reader(), LAYOUT.number_reader()
NORM = LAYOUT.positions["norm"]


@functools.cache
def kernel(stream: str | None, dtype: type) -> Any:
    """Machine code of `(record, leader) -> finished`; `stream` is the format of what is written, if anything is."""
    take = _norm_tile(dtype) if stream is None else _gather_tile(stream, dtype)
    write_norm, size = norm_writer(word, dtype), np.dtype(dtype).itemsize
    store_squares, room, zero = unit_squares(float_type(dtype)), stack(TILE * size), dtype(0.0)
    store = element_store(FORMATS[np.dtype(dtype).name], float_type(dtype), 1, 0)

    @compiled
    def factor_of(record: Any) -> Any:
        factor = dtype(number(record, "scale"))
        grad_scale = word(record, "grad_scale")
        return factor if grad_scale == 0 else factor / dtype(read_float(grad_scale, 0))

    def run(record: Any, leader: Any) -> Any:
        # The first look is at the counter alone: who comes too late may find the rest gone.
        count, chunk, memory = word(record, "count"), word(record, "chunk"), room()
        first = fetch_add(record + 8 * NEXT, chunk)
        if first < count:
            factor, squares, firsts = factor_of(record), word(record, "squares"), word(record, "firsts")
            while first < count:
                last = min(first + chunk, count)
                for tile in range(first, last):
                    place, length = take(record, word(record, "tiles") + 40 * tile, factor, memory)
                    out = squares + size * read_int32(firsts, tile)
                    if place != 0:
                        store_squares(place, length, out)
                    else:
                        for unit in range(read_int32(firsts, tile + 1) - read_int32(firsts, tile)):
                            store(out, unit, zero)
                fetch_add(record + 8 * DONE, last - first)
                first = fetch_add(record + 8 * NEXT, chunk)
        if leader == 0 or not wait(record, count):
            return 0
        write_norm(record)
        return 1

    return native(run, types.int64(types.int64, types.int64))


def _norm_tile(dtype: type) -> Any:
    """`(record, row, factor, memory) -> (address, count)` of the gradients of a tile; address 0 where it has none."""
    source, found, one = tile_source(dtype), written_finder(float_type(dtype)), dtype(1.0)

    @compiled
    def is_written(record: Any, entry: Any, row: Any, count: Any, memory: Any) -> Any:
        address, code, converter = read_int(entry, 0), read_int(entry, 1), word(record, "converter")
        return count == 0 or found(source(address, code, read_int(row, 1), count, one, 0, memory, converter), count)

    @compiled
    def norm_tile(record: Any, row: Any, factor: Any, memory: Any) -> Any:
        variable, count, frozen = read_int(row, 3), read_int(row, 2), word(record, "frozen")
        entry, written = word(record, "sources") + 16 * variable, word(record, "written")
        address = read_int(entry, 0)
        if address == 0:
            return 0, count
        if written != 0 and read_byte(written, variable) == 0:
            if not is_written(record, entry, row, count, memory):
                return 0, count  # an infinite factor would make NaN of it
            write_byte(written, variable, 1)
        if frozen != 0:
            frozen += read_int(row, 0)
        converter = word(record, "converter")
        place = source(address, read_int(entry, 1), read_int(row, 1), count, factor, frozen, memory, converter)
        return place, count

    return norm_tile


def _gather_tile(stream: str, dtype: type) -> Any:
    """`(record, row, factor, memory) -> (address, count)` of what the stream then holds of a tile."""
    source, store_tile = tile_source(dtype), _storer(stream, dtype)

    @compiled
    def gather_tile(record: Any, row: Any, factor: Any, memory: Any) -> Any:
        entry = word(record, "sources") + 16 * read_int(row, 3)
        start, count, address = read_int(row, 0), read_int(row, 2), read_int(entry, 0)
        place, touched, add, frozen = memory, address != 0, word(record, "add") != 0, word(record, "frozen")
        if touched:
            converter = word(record, "converter")
            place = source(address, read_int(entry, 1), read_int(row, 1), count, factor, 0, memory, converter)
        return store_tile(place, word(record, "stream"), start, count, touched, add, frozen, memory), count

    return gather_tile


def _storer(stream: str, dtype: type) -> Any:
    """`(place, stream, start, count, touched, add, frozen, memory) -> address` of what is now there, in `dtype`."""
    compute, format_ = float_type(dtype), FORMATS[stream]
    same = np.dtype(dtype).name == stream
    plain = FORMATS[np.dtype(dtype).name]
    load_source, keep = element_load(plain, compute, 2, 0), element_store(plain, compute, 2, 0)
    load, store = element_load(format_, compute, 2, 1), element_store(format_, compute, 2, 1)
    zero, size = dtype(0.0), format_.size

    @compiled
    def store_tile(
        place: Any, stream: Any, start: Any, count: Any, touched: Any, add: Any, frozen: Any, memory: Any
    ) -> Any:
        wide_vectors()
        target = stream + start * size
        if not touched and not add:
            for i in range(count):
                store(target, i, zero)
        elif touched and not add:
            for i in range(count):
                store(target, i, load_source(place, i))
        elif touched:
            for i in range(count):
                store(target, i, load(target, i) + load_source(place, i))
        if touched and frozen != 0:
            for i in range(count):
                if read_byte(frozen, start + i) != 0:
                    store(target, i, zero)
        if same and (touched or frozen == 0):
            return target
        for i in range(count):
            # What an untouched variable holds where it is masked is no gradient either.
            keep(memory, i, zero if frozen != 0 and read_byte(frozen, start + i) != 0 else load(target, i))
        return memory

    return store_tile


def launch(
    launcher: Launcher,
    tables: Tables,
    units: Units,
    sources: Sources,
    stream: Tensor | None,
    out: NormSlot,
    scale: float,
    add: bool,
    grad_scale: Tensor | None,
    written: Tensor | None,
) -> Again:
    """See `Launches.accumulate`; `written` is uint8 [variables], of viewed sources."""
    if written is not None:
        written.zero_()
    given = (
        *read_of(tables, sources, written),
        None if stream is None else (stream.data_ptr(), stream.dtype),
        out.norm.dtype,
        out.sums.data_ptr(),
        out.slot,
        scale,
        add,
        None if grad_scale is None else grad_scale.data_ptr(),
    )
    made = launcher.run(
        given,
        lambda: _prepared(tables, units, sources, stream, out, scale, add, address_of(grad_scale), written),
        # Whoever was handed the last norm keeps it: the next one is another tensor.
        [(NORM, out.norm.data_ptr())],
    )

    def again(norm: Tensor) -> None:
        if written is not None:
            written.zero_()
        made.run([(NORM, norm.data_ptr())])

    return again


def _prepared(
    tables: Tables,
    units: Units,
    sources: Sources,
    stream: Tensor | None,
    out: NormSlot,
    scale: float,
    add: bool,
    grad_scale: int,
    written: Tensor | None,
) -> Prepared:
    dtype = DTYPES[tables.compute_dtype]
    code = kernel(None if stream is None else name_of(stream.dtype), dtype)
    plain = sources.dtype == tables.compute_dtype and scale == 1.0 and not grad_scale and tables.frozen is None
    size = np.dtype(dtype).itemsize * (1 if stream is None else 3)
    record = LAYOUT.fill(
        tiles=tables.tiles.data_ptr(),
        count=tables.count,
        sources=sources.table.data_ptr(),
        converter=0 if plain else converter_of(dtype),
        stream=address_of(stream),
        add=add,
        scale=bits_of(scale),
        grad_scale=grad_scale,
        frozen=address_of(tables.frozen),
        firsts=units.addresses[0],
        squares=units.addresses[1],
        units=len(units.squares),
        written=address_of(written),
        sums=out.sums.data_ptr(),
        slot=out.slot,
        norm=out.norm.data_ptr(),
        norm_is_double=out.norm.dtype == torch.float64,
    )
    return Prepared(code, record, size * tables.numel)
