"""Gathers scattered gradients into the flat stream and takes their norm on the way: one launch, one pass.

    grads <- scale * source                 (overwrite: the first micro-batch; untouched variables become zeros)
    grads <- grads + scale * source         (add)
    norm alone divides by `grad_scale`, where a GradScaler scaled the loss
    norm  <- sqrt(sum of grads^2)           of what the launch leaves behind; nothing is stored without a stream

Traffic: overwrite 4 B read (source) + 4 B written; add 8 B read + 4 B written; norm alone 4 B read, per float32
parameter; 1 B more where elements are masked.
Numerics: squares of a tile in float32 (float64 for float64 regions) in the order of `sums.py`, tiles in double, in
their order: the same bits for any number of threads.
Aliasing: the stream in place; sources may not overlap it. Masked elements count as 0 whatever they hold, and 0 is
stored for them. Padding is not touched.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from ..addresses import Sources
from ..launches import NormSlot, Tables
from .compile import DTYPES, compiled, float_type, native
from .formats import FORMATS, name_of
from .gradients import TILE, converter_of, tile_source
from .memory import element_load, element_store, fetch_add, read_byte, read_double, read_float, read_int
from .memory import stack, write_double, write_float
from .record import DONE, NEXT, Layout, address_of, bits_of
from .sums import reduction
from .threads import POOL, callable_of, chunk_of, threads_for, wait

LAYOUT = Layout(
    "tiles",  # address of [tiles, 5] int64
    "count",  # of tiles
    "chunk",  # tiles that a thread takes at a time
    "sources",  # address of [variables, 2] int64: address (0: none) and dtype code
    "converter",  # address of the function for gradients of other dtypes
    "stream",  # address of [numel] in/out, or 0
    "add",  # flag
    "scale",  # float64
    "grad_scale",  # address of float32, or 0
    "frozen",  # address of uint8 [numel], or 0
    "partials",  # address of float64 [tiles], scratch
    "sums",  # address of [regions] out
    "sums_are_double",
    "slot",
    "norm",  # address of [] out
    "norm_is_double",
)
word, number = LAYOUT.reader(), LAYOUT.number_reader()


@functools.cache
def kernel(stream: str | None, dtype: type) -> Any:
    """Machine code of `(record, leader) -> finished`; `stream` is the format of what is written, if anything is."""
    squares, source = reduction("squares", float_type(dtype)), tile_source(dtype)
    room, one = stack(TILE * np.dtype(dtype).itemsize), dtype(1.0)
    store_tile = None if stream is None else _storer(stream, dtype)

    @compiled
    def factor_of(record: Any) -> Any:
        factor = dtype(number(record, "scale"))
        grad_scale = word(record, "grad_scale")
        return factor if grad_scale == 0 else factor / dtype(read_float(grad_scale, 0))

    def norm_tile(record: Any, tile: Any, factor: Any, memory: Any) -> Any:
        row = word(record, "tiles") + 40 * tile
        entry = word(record, "sources") + 16 * read_int(row, 3)
        address, frozen = read_int(entry, 0), word(record, "frozen")
        if address == 0:
            return 0.0
        if frozen != 0:
            frozen += read_int(row, 0)
        count, converter = read_int(row, 2), word(record, "converter")
        place = source(address, read_int(entry, 1), read_int(row, 1), count, factor, frozen, memory, converter)
        return np.float64(squares(place, count))

    def gather_tile(record: Any, tile: Any, factor: Any, memory: Any) -> Any:
        row = word(record, "tiles") + 40 * tile
        entry = word(record, "sources") + 16 * read_int(row, 3)
        start, count = read_int(row, 0), read_int(row, 2)
        address, place = read_int(entry, 0), memory
        if address != 0:
            converter = word(record, "converter")
            place = source(address, read_int(entry, 1), read_int(row, 1), count, factor, 0, memory, converter)
        found = store_tile(
            place, word(record, "stream"), start, count, address != 0, word(record, "add") != 0, word(record, "frozen"), memory
        )
        return np.float64(squares(found, count))

    tile_sum = compiled(norm_tile if stream is None else gather_tile)

    def run(record: Any, leader: Any) -> Any:
        # The first look is at the counter alone: who comes too late may find the rest gone.
        count, chunk, memory = word(record, "count"), word(record, "chunk"), room()
        first = fetch_add(record + 8 * NEXT, chunk)
        if first < count:
            factor, partials = factor_of(record), word(record, "partials")
            while first < count:
                last = min(first + chunk, count)
                for tile in range(first, last):
                    write_double(partials, tile, tile_sum(record, tile, factor, memory))
                fetch_add(record + 8 * DONE, last - first)
                first = fetch_add(record + 8 * NEXT, chunk)
        if leader == 0 or not wait(record, count):
            return 0
        write_norm(record)
        return 1

    return native(run, types.int64(types.int64, types.int64))


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


@compiled
def write_norm(record: Any) -> None:
    """Adds all tiles, keeps the region's sum in `sums[slot]` and writes the norm of the regions so far."""
    partials, sums, slot = word(record, "partials"), word(record, "sums"), word(record, "slot")
    total = 0.0
    for tile in range(word(record, "count")):
        total += read_double(partials, tile)
    double = word(record, "sums_are_double") != 0
    if double:
        write_double(sums, slot, total)
    else:
        write_float(sums, slot, total)
    for earlier in range(slot):
        total += read_double(sums, earlier) if double else np.float64(read_float(sums, earlier))
    norm = math.sqrt(total)
    if word(record, "norm_is_double") != 0:
        write_double(word(record, "norm"), 0, norm)
    else:
        write_float(word(record, "norm"), 0, norm)


def launch(
    tables: Tables, sources: Sources, stream: Tensor | None, out: NormSlot, scale: float, add: bool, grad_scale: Tensor | None
) -> None:
    """See `Launches.accumulate`."""
    dtype = DTYPES[tables.compute_dtype]
    code = kernel(None if stream is None else name_of(stream.dtype), dtype)
    partials = np.empty(len(tables.tiles))
    plain = sources.dtype == tables.compute_dtype and scale == 1.0 and grad_scale is None and tables.frozen is None
    size = np.dtype(dtype).itemsize * (1 if stream is None else 3)
    threads = threads_for(size * tables.numel)
    record = LAYOUT.fill(
        tiles=tables.tiles.data_ptr(),
        count=len(partials),
        chunk=chunk_of(len(partials), threads),
        sources=sources.table.data_ptr(),
        converter=0 if plain else converter_of(dtype),
        stream=address_of(stream),
        add=add,
        scale=bits_of(scale),
        grad_scale=address_of(grad_scale),
        frozen=address_of(tables.frozen),
        partials=partials.ctypes.data,
        sums=out.sums.data_ptr(),
        sums_are_double=out.sums.dtype == torch.float64,
        slot=out.slot,
        norm=out.norm.data_ptr(),
        norm_is_double=out.norm.dtype == torch.float64,
    )
    POOL.launch(callable_of(code), record, threads)
