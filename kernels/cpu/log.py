"""Averages of squares in 4 bits for LLVM, a unit at a time; `kernels/formats.py` says what `log4` stores.

Numerics: as compiled by Triton, bit for bit. Codes are made in the row, in the place of the numbers, and then packed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ..formats import BEND, BEND_LESS, LARGEST_HALF, STEPS, TURN
from .compile import compiled, wide_vectors
from .formats import I16, I32
from .memory import I8, pointer, read_int32, write_float, write_int32
from .words import word_of

F32 = ir.FloatType()
INFINITY = 0x7F800000


def _is_between(builder: Any, bits: Any) -> Any:
    """Whether they are those of a finite number above 0."""
    return builder.icmp_unsigned("<", builder.sub(bits, I32(1)), I32(INFINITY - 1))


def _larger(builder: Any, x: Any, bits: Any) -> Any:
    bits = builder.select(_is_between(builder, bits), bits, I32(0))
    return builder.select(builder.icmp_unsigned(">", x, bits), x, bits)


def _smaller(builder: Any, x: Any, bits: Any) -> Any:
    bits = builder.select(_is_between(builder, bits), bits, I32(INFINITY))
    return builder.select(builder.icmp_unsigned("<", x, bits), x, bits)


def _bend(builder: Any, bits: Any) -> Any:
    m = builder.fmul(builder.sitofp(builder.and_(bits, I32(0x7FFFFF)), F32), F32(2.0**-23))
    slope = builder.fsub(F32(BEND), builder.fmul(F32(BEND_LESS), m))
    return builder.fmul(builder.fmul(m, builder.fsub(F32(1.0), m)), slope)


def _code(builder: Any, bits: Any, first: Any, step: Any, inverse: Any, draw: Any) -> Any:
    """Of a number by its bits; `first` are those of the least of a grid, `inverse` is 1 / their distance."""
    counts = _is_between(builder, bits)
    kept = builder.select(counts, bits, first)
    place = builder.fptosi(builder.fmul(builder.sitofp(builder.sub(kept, first), F32), inverse), I32)
    place = builder.select(builder.icmp_signed("<", place, I32(0)), I32(0), place)
    place = builder.select(builder.icmp_signed(">", place, I32(14)), I32(14), place)
    below = builder.add(first, builder.mul(place, step))
    bend = _bend(builder, below)
    rest = builder.fmul(builder.sitofp(builder.sub(kept, below), F32), F32(2.0**-23))
    rest = builder.fadd(rest, builder.fsub(_bend(builder, kept), bend))
    whole = builder.fsub(_bend(builder, builder.add(below, step)), bend)
    whole = builder.fadd(builder.fmul(builder.sitofp(step, F32), F32(2.0**-23)), whole)
    share = builder.fmul(builder.fsub(F32(65535.5), builder.sitofp(draw, F32)), F32(2.0**-16))
    up = builder.zext(builder.fcmp_ordered(">", rest, builder.fmul(share, whole)), I32)
    place = builder.add(place, up)
    place = builder.select(builder.icmp_signed(">", place, I32(14)), I32(14), place)
    code = builder.add(place, I32(1))
    is_special = builder.icmp_unsigned(">=", builder.and_(bits, I32(0x7FFFFFFF)), I32(INFINITY))
    return builder.select(counts, code, builder.select(is_special, I32(15), I32(0)))


def _number(builder: Any, code: Any, top: Any, step: Any) -> Any:
    bits = builder.sub(top, builder.mul(builder.sub(I32(15), code), step))
    return builder.bitcast(builder.select(builder.icmp_unsigned("==", code, I32(0)), I32(0), bits), F32)


def _load_byte(builder: Any, address: Any, index: Any) -> Any:
    return builder.zext(builder.load(pointer(builder, address, I8, index)), I32)


def _store_pair(builder: Any, address: Any, index: Any, low: Any, high: Any) -> None:
    pair = builder.or_(low, builder.shl(high, I32(4)))
    builder.store(builder.trunc(pair, I8), pointer(builder, address, I8, index))


def _load_draw(builder: Any, address: Any, index: Any) -> Any:
    return builder.zext(builder.load(pointer(builder, address, I16, index)), I32)


def _store_draw(builder: Any, address: Any, index: Any, draw: Any) -> None:
    builder.store(builder.trunc(draw, I16), pointer(builder, address, I16, index))


INT = types.int32
larger = word_of(INT, [INT, INT], _larger)
smaller = word_of(INT, [INT, INT], _smaller)
code_of = word_of(INT, [INT, INT, INT, types.float32, INT], _code)
number_of = word_of(types.float32, [INT, INT, INT], _number)
lower = word_of(INT, [INT], lambda builder, pair: builder.and_(pair, I32(15)))
upper = word_of(INT, [INT], lambda builder, pair: builder.lshr(pair, I32(4)))
load_pair = word_of(INT, [types.int64, types.int64], _load_byte)
store_pair = word_of(types.void, [types.int64, types.int64, INT, INT], _store_pair)
load_draw = word_of(INT, [types.int64, types.int64], _load_draw)
store_draw = word_of(types.void, [types.int64, types.int64, INT], _store_draw)
ZERO, NOTHING, INFINITE, HALF, ONE = np.int64(0), np.int32(0), np.int32(INFINITY), np.int32(0x8000), np.float32(1.0)


@compiled
def turn_draws(draws: Any, count: Any, step: Any) -> None:
    """Turns 16-bit draws on, as a step of that number finds them."""
    wide_vectors()
    turn = np.int32(step * TURN & 0xFFFF)
    for i in range(count):
        store_draw(draws, i, np.int32(load_draw(draws, i) + turn))


@compiled
def load_log(codes: Any, grids: Any, _: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    """A unit as float32 numbers in a row, and one more if they are odd."""
    wide_vectors()
    grid = read_int32(grids, unit)
    top, step = np.int32(grid >> 16 << 16), np.int32((grid & 0xFFFF) << 16)
    for i in range((count + 1) // 2):
        pair = load_pair(codes, start // 2 + i)
        write_float(row, 2 * i, number_of(lower(pair), top, step))
        write_float(row, 2 * i + 1, number_of(upper(pair), top, step))


@compiled
def grid_of(row: Any, count: Any) -> Any:
    """Top and step."""
    wide_vectors()
    largest: Any = NOTHING
    least: Any = INFINITE
    for i in range(count):
        bits = read_int32(row, i)
        largest, least = larger(largest, bits), smaller(least, bits)
    high: Any = min((np.int64(largest) + 0xFFFF) >> 16, LARGEST_HALF)
    low: Any = min(np.int64(least) >> 16, high)
    top, step = high, ZERO
    for wider in STEPS:
        above: Any = min((high + wider - 1) & -wider, LARGEST_HALF & -wider)
        if above > 14 * wider and (step == 0 or above - (low & -wider) <= 14 * wider):
            top, step = above, np.int64(wider)
    return top, step


@compiled
def store_log(codes: Any, grids: Any, _: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    wide_vectors()
    if count % 2:
        write_int32(row, count, NOTHING)
    top, step = grid_of(row, count)
    write_int32(grids, unit, np.int32(top << 16 | step))
    first, wide = np.int32((top - 14 * step) << 16), np.int32(step << 16)
    inverse = ONE / np.float32(max(step, 1) << 16)
    if drawn == 0:
        for i in range(count):
            write_int32(row, i, code_of(read_int32(row, i), first, wide, inverse, HALF))
    else:
        for i in range(count):
            write_int32(row, i, code_of(read_int32(row, i), first, wide, inverse, load_draw(drawn, i)))
    for i in range((count + 1) // 2):
        store_pair(codes, start // 2 + i, read_int32(row, 2 * i), read_int32(row, 2 * i + 1))
