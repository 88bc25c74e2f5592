"""Split values: a bfloat16 that torch sees, the 16 or 8 bits below, and a fingerprint of each unit of bfloat16s.

See `kernels/split.py`. Traffic: 4 or 3 B an element and 4 B a unit. Numerics: by integers, as the reference.
Aliasing: all three in place. Low bits of a unit whose fingerprint does not fit, which somebody has written to, are 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import formats
from ..segments import UNIT as ELEMENTS
from ..split import STEP as STEP_OF_CODE

UNIT = tl.constexpr(ELEMENTS)
FIRST, SECOND = tl.constexpr(0x9E3779B1), tl.constexpr(0x85EBCA77)
STEP = tl.constexpr(STEP_OF_CODE)
WHOLE, CORRECTED = tl.constexpr(1), tl.constexpr(2)
KINDS = {None: 0, formats.SPLIT: 1, formats.CORRECTED: 2}
"""How a kernel is told, as SPLIT, of how values are stored."""


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
def lower_bits(low, upper, prints, real, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """Of an int16 tile, as uint32, or of int8, as int32: 0 where the fingerprint does not fit."""
    fits = fingerprints(upper, real, BLOCK) == prints
    fits = tl.reshape(tl.broadcast_to(tl.expand_dims(fits, 1), [BLOCK // UNIT, UNIT]), [BLOCK])
    if SPLIT == WHOLE:
        bits = low.to(tl.uint16, bitcast=True).to(tl.uint32)
        # No encoding makes a zero with the upper half of its low bits: joined, they would be NaN.
        found = tl.where(fits & (((upper & 0x7FFF) != 0) | (bits < 0x8000)), bits, 0).to(tl.uint32)
    else:
        found = tl.where(fits, low.to(tl.int32), 0)
    return found


@triton.jit
def joined(upper, lower, SPLIT: tl.constexpr):
    """The float32 tile."""
    if SPLIT == WHOLE:
        bits = (((upper - (lower >> 15)) & 0xFFFF) << 16) | lower
    else:
        bits = corrected(upper, lower)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def corrected(upper, code):
    """Bits of bfloat16s by their codes, int32."""
    size, is_negative = (upper & 0x7FFF).to(tl.int32), upper >= 0x8000
    code = tl.where(size < 0x7F80, tl.where(is_negative, -code, code), 0) * STEP
    below_power = (code < 0) & ((size & 0x7F) == 0) & (size > 0x80)
    rest = tl.where(below_power, (code + 0x1000) >> 13, (code + 0x2000) >> 14)
    return ((size << 16) + rest).to(tl.uint32) | tl.where(is_negative, 0x80000000, 0).to(tl.uint32)


@triton.jit
def parted(value, SPLIT: tl.constexpr):
    """Upper bits of a float32 tile, uint32, and what is stored beside; NaN is one beside which 0 is."""
    bits = value.to(tl.uint32, bitcast=True)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if SPLIT == WHOLE:
        upper = tl.where(is_nan, 0x7FC0 | ((bits >> 16) & 0x8000), ((bits >> 16) + ((bits >> 15) & 1)) & 0xFFFF)
        lower = tl.where(is_nan, 0, bits & 0xFFFF).to(tl.uint32)
    else:
        size, lower = coded((bits & 0x7FFFFFFF).to(tl.int32))
        lower = tl.where(bits >= 0x80000000, -lower, lower)
        upper = tl.where(is_nan, 0x7FC0, size).to(tl.uint32) | ((bits >> 16) & 0x8000)
    return upper.to(tl.uint32), lower


@triton.jit
def coded(size):
    """Upper bits and code of numbers without their sign, int32."""
    below, rest = size >> 16, size & 0xFFFF
    code = (rest * 127 + 0x4000 - (rest > 0x8000).to(tl.int32)) >> 15
    to_power = ((below & 0x7F) == 0x7F) & (below > 0x7F)
    up = tl.where(to_power, rest >= 0x8000, code + (below & 1) > 127)
    above = -tl.minimum(((0x10000 - rest) * 127 + 0x8000) >> 16, 63)
    code = tl.where(up, tl.where(to_power, above, code - 254), tl.where(to_power, tl.minimum(code, 126), code))
    upper = below + up.to(tl.int32)
    return upper, tl.where(upper < 0x7F80, code, 0)


@triton.jit
def store_split(
    values_ptr, low_ptr, prints_ptr, offset, first, upper, lower, frozen, old_upper, old_lower, real, length, mask,
    SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Stores a tile with the fingerprints of what is stored; `first` is its unit."""
    if frozen is not None:
        upper, lower = tl.where(frozen, old_upper, upper), tl.where(frozen, old_lower, lower)
    tl.store(values_ptr + offset, upper.to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=mask)
    if SPLIT == WHOLE:
        tl.store(low_ptr + offset, lower.to(tl.uint16).to(tl.int16, bitcast=True), mask=mask)
    else:
        tl.store(low_ptr + offset, lower.to(tl.int8), mask=mask)
    unit = tl.arange(0, BLOCK // UNIT)
    tl.store(prints_ptr + first + unit, fingerprints(upper, real, BLOCK), mask=unit * UNIT < length)
