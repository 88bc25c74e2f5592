"""Split values for LLVM, a unit at a time; `kernels/triton/split.py` says what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from .compile import compiled
from .formats import I16, I32
from .memory import pointer, read_float, read_int32, write_float, write_int32
from .words import word_of

F32 = ir.FloatType()
FIRST, SECOND = 0x9E3779B1, 0x85EBCA77


def _load_half(builder: Any, address: Any, index: Any) -> Any:
    return builder.zext(builder.load(pointer(builder, address, I16, index)), I32)


def _store_half(builder: Any, address: Any, index: Any, bits: Any) -> None:
    builder.store(builder.trunc(bits, I16), pointer(builder, address, I16, index))


def _mixed(builder: Any, upper: Any, index: Any) -> Any:
    x = builder.or_(upper, builder.shl(builder.trunc(index, I32), I32(16)))
    x = builder.mul(x, I32(FIRST))
    x = builder.xor(x, builder.lshr(x, I32(15)))
    x = builder.mul(x, I32(SECOND))
    return builder.xor(x, builder.lshr(x, I32(13)))


def _joined(builder: Any, upper: Any, lower: Any) -> Any:
    # No encoding makes a zero with the upper half of its low bits: joined, they would be NaN.
    is_zero = builder.icmp_unsigned("==", builder.and_(upper, I32(0x7FFF)), I32(0))
    stale = builder.and_(is_zero, builder.icmp_unsigned(">=", lower, I32(0x8000)))
    lower = builder.select(stale, I32(0), lower)
    high = builder.shl(builder.sub(upper, builder.lshr(lower, I32(15))), I32(16))
    return builder.bitcast(builder.or_(high, lower), F32)


def _is_nan(builder: Any, bits: Any) -> Any:
    return builder.icmp_unsigned(">", builder.and_(bits, I32(0x7FFFFFFF)), I32(0x7F800000))


def _upper(builder: Any, x: Any) -> Any:
    bits = builder.bitcast(x, I32)
    high = builder.lshr(bits, I32(16))
    rounded = builder.add(high, builder.and_(builder.lshr(bits, I32(15)), I32(1)))
    nan = builder.or_(builder.and_(high, I32(0x8000)), I32(0x7FC0))
    return builder.and_(builder.select(_is_nan(builder, bits), nan, rounded), I32(0xFFFF))


def _lower(builder: Any, x: Any) -> Any:
    bits = builder.bitcast(x, I32)
    return builder.select(_is_nan(builder, bits), I32(0), builder.and_(bits, I32(0xFFFF)))


load_half = word_of(types.int32, [types.int64, types.int64], _load_half)
store_half = word_of(types.void, [types.int64, types.int64, types.int32], _store_half)
mixed = word_of(types.int32, [types.int32, types.int64], _mixed)
joined = word_of(types.float32, [types.int32, types.int32], _joined)
upper_of = word_of(types.int32, [types.float32], _upper)
lower_of = word_of(types.int32, [types.float32], _lower)
add = word_of(types.int32, [types.int32, types.int32], lambda builder, x, y: builder.add(x, y))
either = word_of(types.int32, [types.boolean, types.int32], lambda builder, yes, x: builder.select(yes, x, I32(0)))
ZERO = np.int32(0)


@compiled
def fingerprint(values: Any, start: Any, count: Any) -> Any:
    total = ZERO
    for i in range(count):
        total = add(total, mixed(load_half(values, start + i), i))
    return total


@compiled
def load_split(values: Any, low: Any, prints: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    """A unit as float32 numbers in a row."""
    fits = fingerprint(values, start, count) == read_int32(prints, unit)
    for i in range(count):
        write_float(row, i, joined(load_half(values, start + i), either(fits, load_half(low, start + i))))


@compiled
def store_split(values: Any, low: Any, prints: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    for i in range(count):
        x = read_float(row, i)
        store_half(values, start + i, upper_of(x))
        store_half(low, start + i, lower_of(x))
    write_int32(prints, unit, fingerprint(values, start, count))
