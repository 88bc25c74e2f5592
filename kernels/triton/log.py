"""Tiles of averages of squares in 4 bits, as `kernels/formats.py` has them: pairs of codes, and a grid for each unit.

Traffic: half a byte an element and 4 B a unit. Numerics: as compiled for the CPU, bit for bit; codes are rounded by the
draws they are given. Aliasing: in place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import formats
from ..segments import UNIT as ELEMENTS
from .compile import div_rn

UNIT = tl.constexpr(ELEMENTS)
LARGEST_HALF = tl.constexpr(formats.LARGEST_HALF)
BEND, BEND_LESS = tl.constexpr(formats.BEND), tl.constexpr(formats.BEND_LESS)
INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def pair_mask(length, BLOCK: tl.constexpr):
    """As `padded_mask`, of pairs."""
    return tl.arange(0, BLOCK // 2) < ((length + 15) >> 4) << 3


@triton.jit
def load_pairs(codes_ptr, first, length, BLOCK: tl.constexpr):
    """[BLOCK // 2] uint8 from element `first` of the stream on, a multiple of 16."""
    place = tl.multiple_of(first >> 1, 8) + tl.arange(0, BLOCK // 2)
    return tl.load(codes_ptr + place, mask=pair_mask(length, BLOCK), other=0)


@triton.jit
def store_pairs(codes_ptr, first, codes, length, BLOCK: tl.constexpr):
    """Stores codes, [BLOCK] int32."""
    low, high = tl.split(tl.reshape(codes, [BLOCK // 2, 2]))
    place = tl.multiple_of(first >> 1, 8) + tl.arange(0, BLOCK // 2)
    tl.store(codes_ptr + place, (low | (high << 4)).to(tl.uint8), mask=pair_mask(length, BLOCK))


@triton.jit
def log_numbers(pairs, grid, BLOCK: tl.constexpr):
    """[BLOCK] float32 of pairs of codes."""
    wide = pairs.to(tl.int32)
    codes = tl.reshape(tl.join(wide & 15, wide >> 4), [BLOCK])
    bits = ((grid >> 16) - (15 - codes) * (grid & 0xFFFF)) << 16
    return tl.where(codes > 0, bits, 0).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def chosen(high, low, top, step, STEP: tl.constexpr):
    """Top and step, or those of a narrower grid if it reaches from the largest to the least."""
    above = tl.minimum((high + (STEP - 1)) & -STEP, LARGEST_HALF & -STEP)
    fits = above - (low & -STEP) <= 14 * STEP
    better = (above > 14 * STEP) & (fits | (step == 0))
    return tl.where(better, above, top), tl.where(better, STEP, step)


@triton.jit
def log_grid(state, BLOCK: tl.constexpr):
    """Of each unit: upper bits of the largest number, and how far those of two neighbors are apart, in one int32."""
    bits = tl.reshape(state.to(tl.int32, bitcast=True), [BLOCK // UNIT, UNIT])
    counts = (bits > 0) & (bits < INFINITY)
    high = (tl.max(tl.where(counts, bits, 0), axis=1).to(tl.int32) + 0xFFFF) >> 16
    high = tl.minimum(high, LARGEST_HALF)
    low = tl.min(tl.where(counts, bits, INFINITY), axis=1).to(tl.int32) >> 16
    low = tl.minimum(low, high)
    top, step = high, tl.zeros_like(high)
    for i in tl.static_range(8):
        top, step = chosen(high, low, top, step, 128 >> i)
    return ((top << 16) | step).to(tl.int32)


@triton.jit
def bend(bits):
    """What log2(1 + m) is more than the mantissa m."""
    m = (bits & 0x7FFFFF).to(tl.float32) * 1.1920928955078125e-07
    return (m * (1.0 - m)) * (BEND - BEND_LESS * m)


@triton.jit
def log_codes(state, grid, draw):
    """[BLOCK] int32, rounded by draws, uint16."""
    bits = state.to(tl.int32, bitcast=True)
    counts = (bits > 0) & (bits < INFINITY)
    step = (grid & 0xFFFF) << 16
    first = ((grid >> 16) << 16) - 14 * step
    kept = tl.where(counts, bits, first).to(tl.int32)
    one = tl.full(state.shape, 1.0, tl.float32)
    inverse = div_rn(one, tl.maximum(step, 0x10000).to(tl.float32))
    place = ((kept - first).to(tl.float32) * inverse).to(tl.int32)
    place = tl.minimum(tl.maximum(place, 0), 14)
    below = first + place * step
    bent = bend(below)
    rest = (kept - below).to(tl.float32) * 1.1920928955078125e-07 + (bend(kept) - bent)
    whole = step.to(tl.float32) * 1.1920928955078125e-07 + (bend(below + step) - bent)
    share = (65535.5 - draw.to(tl.int32).to(tl.float32)) * 0.0000152587890625
    code = tl.minimum(place + (rest > share * whole).to(tl.int32), 14) + 1
    special = (bits & 0x7FFFFFFF) >= INFINITY
    return tl.where(counts, code, tl.where(special, 15, 0)).to(tl.int32)
