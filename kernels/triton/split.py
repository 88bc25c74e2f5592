"""Split values: a bfloat16 that torch sees, the 16 bits below, and a fingerprint of each unit of bfloat16s.

See `kernels/formats.py`. Traffic: 4 B an element and 4 B a unit. Numerics: bits alone, no rounding anywhere.
Aliasing: all three in place. Low bits of a unit whose fingerprint does not fit, which somebody has written to, are 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..segments import UNIT as ELEMENTS

UNIT = tl.constexpr(ELEMENTS)
FIRST, SECOND = tl.constexpr(0x9E3779B1), tl.constexpr(0x85EBCA77)


@triton.jit
def fingerprints(upper, real, BLOCK: tl.constexpr):
    """Of each unit of a tile: the sum of a mixture of each element's bits, uint32, and its place in the unit."""
    x = upper | ((tl.arange(0, BLOCK) % UNIT) << 16).to(tl.uint32)
    x = tl.mul(x, FIRST, sanitize_overflow=False)
    x = x ^ (x >> 15)
    x = tl.mul(x, SECOND, sanitize_overflow=False)
    x = x ^ (x >> 13)
    x = tl.where(real, x, 0).to(tl.int32)
    # The interpreter adds up in 64 bits: these conversions cut, and are none on a GPU.
    return tl.sum(tl.reshape(x, [BLOCK // UNIT, UNIT]), axis=1).to(tl.uint32).to(tl.int32)


@triton.jit
def upper_bits(value):
    """Of a bfloat16 tile, as uint32."""
    return value.to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def lower_bits(low, upper, prints, real, BLOCK: tl.constexpr):
    """Of an int16 tile, as uint32: 0 where the fingerprint does not fit."""
    fits = fingerprints(upper, real, BLOCK) == prints
    fits = tl.reshape(tl.broadcast_to(tl.expand_dims(fits, 1), [BLOCK // UNIT, UNIT]), [BLOCK])
    bits = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    # No encoding makes a zero with the upper half of its low bits: joined, they would be NaN.
    return tl.where(fits & (((upper & 0x7FFF) != 0) | (bits < 0x8000)), bits, 0).to(tl.uint32)


@triton.jit
def joined(upper, lower):
    """The float32 tile."""
    bits = (((upper - (lower >> 15)) & 0xFFFF) << 16) | lower
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def parted(value):
    """Upper and lower bits of a float32 tile, uint32; NaN is one with lower bits of 0."""
    bits = value.to(tl.uint32, bitcast=True)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    upper = tl.where(is_nan, 0x7FC0 | ((bits >> 16) & 0x8000), ((bits >> 16) + ((bits >> 15) & 1)) & 0xFFFF)
    return upper.to(tl.uint32), tl.where(is_nan, 0, bits & 0xFFFF).to(tl.uint32)


@triton.jit
def store_split(
    values_ptr, low_ptr, prints_ptr, offset, first, upper, lower, frozen, old_upper, old_lower, real, length, mask,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores a tile with the fingerprints of what is stored; `first` is its unit."""
    if frozen is not None:
        upper, lower = tl.where(frozen, old_upper, upper), tl.where(frozen, old_lower, lower)
    tl.store(values_ptr + offset, upper.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    tl.store(low_ptr + offset, lower.to(tl.uint16).to(tl.int16, bitcast=True), mask=mask)
    unit = tl.arange(0, BLOCK // UNIT)
    tl.store(prints_ptr + first + unit, fingerprints(upper, real, BLOCK), mask=unit * UNIT < length)
