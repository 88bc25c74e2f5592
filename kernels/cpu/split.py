"""Split values for LLVM, a unit at a time; `kernels/split.py` says what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ..split import STEP
from .compile import compiled, wide_vectors
from .formats import I16, I32
from .memory import I8, pointer, read_float, read_int32, write_float, write_int32
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


def _load_code(builder: Any, address: Any, index: Any) -> Any:
    return builder.sext(builder.load(pointer(builder, address, I8, index)), I32)


def _store_code(builder: Any, address: Any, index: Any, code: Any) -> None:
    builder.store(builder.trunc(code, I8), pointer(builder, address, I8, index))


def _all(builder: Any, first: Any, *others: Any) -> Any:
    for other in others:
        first = builder.and_(first, other)
    return first


def _is(builder: Any, x: Any, mask: int, value: int) -> Any:
    return builder.icmp_unsigned("==", builder.and_(x, I32(mask)), I32(value))


def _corrected(builder: Any, upper: Any, code: Any) -> Any:
    sign, size = builder.and_(upper, I32(0x8000)), builder.and_(upper, I32(0x7FFF))
    is_negative = builder.icmp_unsigned("!=", sign, I32(0))
    code = builder.select(is_negative, builder.neg(code), code)
    code = builder.select(builder.icmp_signed("<", size, I32(0x7F80)), code, I32(0))
    code = builder.mul(code, I32(STEP))
    is_power = _all(builder, _is(builder, size, 0x7F, 0), builder.icmp_signed(">", size, I32(0x80)))
    twice = builder.ashr(builder.add(code, I32(0x1000)), I32(13))
    once = builder.ashr(builder.add(code, I32(0x2000)), I32(14))
    rest = builder.select(_all(builder, builder.icmp_signed("<", code, I32(0)), is_power), twice, once)
    bits = builder.add(builder.shl(size, I32(16)), rest)
    return builder.bitcast(builder.or_(bits, builder.shl(sign, I32(16))), F32)


def _coded(builder: Any, x: Any) -> tuple[Any, Any]:
    """Upper bits, with the sign, and code; the steps are those of `coded` in `kernels/triton/split.py`."""
    bits = builder.bitcast(x, I32)
    size, is_negative = builder.and_(bits, I32(0x7FFFFFFF)), builder.icmp_signed("<", bits, I32(0))
    below, rest = builder.lshr(size, I32(16)), builder.and_(size, I32(0xFFFF))
    past = builder.zext(builder.icmp_signed(">", rest, I32(0x8000)), I32)
    code = builder.sub(builder.add(builder.mul(rest, I32(127)), I32(0x4000)), past)
    code = builder.lshr(code, I32(15))
    to_power = _all(builder, _is(builder, below, 0x7F, 0x7F), builder.icmp_signed(">", below, I32(0x7F)))
    odd = builder.add(code, builder.and_(below, I32(1)))
    half = builder.icmp_signed(">=", rest, I32(0x8000))
    up = builder.select(to_power, half, builder.icmp_signed(">", odd, I32(127)))
    far = builder.add(builder.mul(builder.sub(I32(0x10000), rest), I32(127)), I32(0x8000))
    far = builder.lshr(far, I32(16))
    far = builder.neg(builder.select(builder.icmp_signed("<", far, I32(63)), far, I32(63)))
    near = builder.select(builder.icmp_signed("<", code, I32(126)), code, I32(126))
    beside_power = builder.select(up, far, near)
    code = builder.select(to_power, beside_power, builder.select(up, builder.sub(code, I32(254)), code))
    upper = builder.add(below, builder.zext(up, I32))
    code = builder.select(is_negative, builder.neg(code), code)
    code = builder.select(builder.icmp_signed("<", upper, I32(0x7F80)), code, I32(0))
    upper = builder.select(_is_nan(builder, bits), I32(0x7FC0), upper)
    return builder.or_(upper, builder.and_(builder.lshr(bits, I32(16)), I32(0x8000))), code


load_half = word_of(types.int32, [types.int64, types.int64], _load_half)
store_half = word_of(types.void, [types.int64, types.int64, types.int32], _store_half)
mixed = word_of(types.int32, [types.int32, types.int64], _mixed)
joined = word_of(types.float32, [types.int32, types.int32], _joined)
upper_of = word_of(types.int32, [types.float32], _upper)
lower_of = word_of(types.int32, [types.float32], _lower)
add = word_of(types.int32, [types.int32, types.int32], lambda builder, x, y: builder.add(x, y))
either = word_of(types.int32, [types.boolean, types.int32], lambda builder, yes, x: builder.select(yes, x, I32(0)))
load_code = word_of(types.int32, [types.int64, types.int64], _load_code)
store_code = word_of(types.void, [types.int64, types.int64, types.int32], _store_code)
corrected = word_of(types.float32, [types.int32, types.int32], _corrected)
corrected_upper = word_of(types.int32, [types.float32], lambda builder, x: _coded(builder, x)[0])
corrected_code = word_of(types.int32, [types.float32], lambda builder, x: _coded(builder, x)[1])
ZERO = np.int32(0)


@compiled
def fingerprint(values: Any, start: Any, count: Any) -> Any:
    wide_vectors()
    total = ZERO
    for i in range(count):
        total = add(total, mixed(load_half(values, start + i), i))
    return total


@compiled
def load_split(values: Any, low: Any, prints: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    """A unit as float32 numbers in a row."""
    wide_vectors()
    fits = fingerprint(values, start, count) == read_int32(prints, unit)
    for i in range(count):
        write_float(row, i, joined(load_half(values, start + i), either(fits, load_half(low, start + i))))


@compiled
def store_split(values: Any, low: Any, prints: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    wide_vectors()
    for i in range(count):
        x = read_float(row, i)
        store_half(values, start + i, upper_of(x))
        store_half(low, start + i, lower_of(x))
    write_int32(prints, unit, fingerprint(values, start, count))


@compiled
def load_corrected(values: Any, low: Any, prints: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any) -> None:
    """The same of values with a code of 8 bits."""
    wide_vectors()
    fits = fingerprint(values, start, count) == read_int32(prints, unit)
    for i in range(count):
        write_float(row, i, corrected(load_half(values, start + i), either(fits, load_code(low, start + i))))


@compiled
def store_corrected(
    values: Any, low: Any, prints: Any, start: Any, unit: Any, count: Any, row: Any, drawn: Any
) -> None:
    wide_vectors()
    for i in range(count):
        x = read_float(row, i)
        store_half(values, start + i, corrected_upper(x))
        store_code(low, start + i, corrected_code(x))
    write_int32(prints, unit, fingerprint(values, start, count))
