"""Streams of a format, a unit of 128 elements at a time: as float32 numbers on the stack, and stored again.

`kernels/formats.py` says what is stored. A unit is decoded into rows of 128 numbers, the rule works on those as on
streams of float32, and what it made of them is stored, largest magnitude first. LLVM makes vectors of each loop.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import formats
from ..formats import Stored
from ..segments import UNIT
from .compile import compiled, native, twin, wide_vectors
from .formats import FORMATS, I32, Format, name_of
from .gradients import TILE
from .log import load_log, store_log
from .memory import I8, address_of, caller, pointer, read_float, read_int, write_float
from .split import load_corrected, load_split, store_corrected, store_split
from .words import word_of

F32 = ir.FloatType()
ROW = 4 * UNIT
"""Bytes of a row."""

SPLIT, CORRECTED, ROOT, ROOT_SQUARES, LOG = "split", "corrected", "root8", "root8 squares", "log4"
NAMES = {
    formats.SPLIT: SPLIT,
    formats.CORRECTED: CORRECTED,
    formats.ROOT8: ROOT,
    formats.ROOT8_SQUARES: ROOT_SQUARES,
    formats.LOG4: LOG,
}
UNIT_KINDS = frozenset(NAMES.values())


def kind_of(stream: Stored) -> str:
    """What an updater is compiled for, of a stream.

    Raises:
        FlatvarsError: no kernel knows its dtype.
    """
    return name_of(stream.buffer.dtype) if stream.format is None else NAMES[stream.format]


def element_formats(kinds: Sequence[str]) -> list[Format]:
    """How a rule's loop finds the elements of each stream: as they are, or in rows of float32."""
    return [FORMATS["float32" if kind in UNIT_KINDS else kind] for kind in kinds]


def plain_draws(states: Sequence[str], draws: Sequence[int]) -> list[int]:
    """Of each state, the draw by which the loop over elements rounds it: that of a format is rounded by its unit."""
    return [-1 if kind in UNIT_KINDS else draw for kind, draw in zip(states, draws, strict=bool(draws))]


def turning(states: Sequence[str], draws: Sequence[int]) -> int:
    """Bits of the draws of states in `log4`, which are of no step, and turned on by each."""
    return sum(1 << draw for kind, draw in zip(states, draws, strict=bool(draws)) if kind == LOG and draw >= 0)


def _load_code(signed: bool) -> Any:
    def generate(builder: Any, address: Any, index: Any) -> Any:
        code = builder.load(pointer(builder, address, I8, index))
        wide = builder.sext(code, I32) if signed else builder.zext(code, I32)
        return builder.sitofp(wide, F32)

    return word_of(types.float32, [types.int64, types.int64], generate)


def _store_code(builder: Any, address: Any, index: Any, code: Any) -> None:
    builder.store(builder.trunc(builder.fptosi(code, I32), I8), pointer(builder, address, I8, index))


def _magnitude(builder: Any, x: Any) -> Any:
    bits = builder.and_(builder.bitcast(x, I32), I32(0x7FFFFFFF))
    return builder.select(builder.icmp_unsigned("<", bits, I32(0x7F800000)), bits, I32(0))


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.icmp_unsigned(">", x, y), x, y)


store_code = word_of(types.void, [types.int64, types.int64, types.float32], _store_code)
# Magnitudes are compared as integers, which LLVM does in vectors; floats would need to be told that none is NaN.
magnitude = word_of(types.int32, [types.float32], _magnitude)
larger = word_of(types.int32, [types.int32, types.int32], _larger)
float_of = word_of(types.float32, [types.int32], lambda builder, bits: builder.bitcast(bits, F32))


@functools.cache
def _unit_functions(kind: str) -> tuple[Any, Any]:
    """`address()` of `load` and `store` of a unit: `(buffer, beside, more, start, unit, count, row, drawn)`.

    `drawn` is the address of 16 random bits for each of its elements, or 0.

    Functions of their own: compiled into every updater, they would take longer than all the rest of it.
    """
    known = {LOG: (load_log, store_log), SPLIT: (load_split, store_split), CORRECTED: (load_corrected, store_corrected)}
    load, store = known[kind] if kind in known else _root(kind == ROOT)
    return address_of(_machine_code(load).symbol), address_of(_machine_code(store).symbol)


_ARGUMENTS = [types.int64] * 8
_call = caller(_ARGUMENTS)


def _machine_code(function: Any) -> Any:
    def run(buffer: Any, beside: Any, more: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
        function(buffer, beside, more, start, unit, count, row, drawn)

    return native(run, types.void(*_ARGUMENTS))


def _root(signed: bool) -> tuple[Any, Any]:
    encode, decode = (
        (formats.root_code, formats.root_number) if signed else (formats.root_code_of_square, formats.root_square)
    )
    encode, decode, load_code = twin(encode, np.float32), twin(decode, np.float32), _load_code(signed)
    zero = np.int32(0)

    @compiled
    def load(codes: Any, scales: Any, _: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
        wide_vectors()
        scale = read_float(scales, unit)
        for i in range(count):
            write_float(row, i, decode(load_code(codes, start + i), scale))

    @compiled
    def store(codes: Any, scales: Any, _: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
        wide_vectors()
        top = zero
        for i in range(count):
            top = larger(top, magnitude(read_float(row, i)))
        scale = float_of(top)
        write_float(scales, unit, scale)
        for i in range(count):
            store_code(codes, start + i, encode(read_float(row, i), scale))

    return load, store


@compiled
def nothing(values: Any, low: Any, prints: Any, table: Any, scales: Any, places: Any, memory: Any, drawn: Any) -> None:
    """What is to load or store of no stream."""


def _of_values(address: Any) -> Any:
    @compiled
    def move(values: Any, low: Any, prints: Any, table: Any, scales: Any, places: Any, memory: Any, drawn: Any) -> None:
        _call(address(), values, low, prints, places[0], places[1], places[4], memory, 0)

    return move


def _then(before: Any, address: Any, number: int, draw: int) -> Any:
    """What comes before, and the same of one of the states, which a draw of the tile rounds, or none if it is -1."""
    offset, at_random = ROW * (number + 1), draw >= 0

    @compiled
    def both(values: Any, low: Any, prints: Any, table: Any, scales: Any, places: Any, memory: Any, drawn: Any) -> None:
        before(values, low, prints, table, scales, places, memory, drawn)
        codes, beside = read_int(table, number), read_int(scales, number)
        bits = drawn + 2 * (TILE * draw + places[5]) if at_random else 0
        _call(address(), codes, beside, beside, places[2], places[3], places[4], memory + offset, bits)

    return both


def movers(kinds: Sequence[str], values: bool, states: range, draws: Sequence[int]) -> tuple[Any, Any]:
    """`load` and `store` of a unit of all streams of a format.

    They are `(values, low, prints, table, scales, places, memory, drawn)`. `places` are element and unit of the values,
    element and unit of the states, the number of elements, and the first of them in the tile; `memory` is a row for the
    values, and one for each state; `drawn` the draws of the tile.

    Args:
        kinds: Of the values, then of each state.
        values: Whether those are stored.
        states: Which of them are.
        draws: Of each state; empty if none is rounded at random.
    """
    load, store = nothing, nothing
    if kinds[0] in UNIT_KINDS:
        addresses = _unit_functions(kinds[0])
        load, store = _of_values(addresses[0]), _of_values(addresses[1]) if values else nothing
    for number, kind in enumerate(kinds[1:]):
        if kind in UNIT_KINDS:
            addresses = _unit_functions(kind)
            draw = draws[number] if draws else -1
            load = _then(load, addresses[0], number, draw)
            store = _then(store, addresses[1], number, draw) if number in states else store
    return load, store


def row_addresses(kinds: Sequence[str], addresses: Any) -> Any:
    """`in_rows(addresses, memory)`: those of the states, but of the rows where a state is of a format.

    Args:
        addresses: Numba's type of the tuple.
    """

    @intrinsic
    def in_rows(typing: Any, given: Any, memory: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given, memory = arguments
            found = [
                builder.add(memory, ir.IntType(64)(ROW * (i + 1)))
                if kind in UNIT_KINDS
                else builder.extract_value(given, i)
                for i, kind in enumerate(kinds[1:])
            ]
            return context.make_tuple(builder, addresses, found)

        return addresses(addresses, types.int64), generate

    return in_rows
