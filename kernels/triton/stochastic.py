"""Rounding to bfloat16 at random: up as often as the rest that is cut off is large, so that the mean is exact.

    r <- 16 bits of Philox4x32-7(counter = (b, b >> 32, step, purpose), key = seed ^ name)      b = i // 8
    x <- upper half of (bits of x + r)          i: position in the variable's memory

`purpose` is 256 of values, and of states 512 and the place among those that the rule rounds. Of 64-bit numbers, the
lower half is the first word.

Traffic: none beside the keys. Numerics: NaN and infinity pass as they are; the largest numbers may round to infinity.
A variable's draws depend on its name, its step and its own memory order: not on layout, tiles, threads or ranks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..formats import TURN as TURN_OF_A_STEP
from .philox import short_philox

TURN = tl.constexpr(TURN_OF_A_STEP)

# Last word of the counter: what the draws are for. Streams of one name and step must not share them.
VALUES, STATES = tl.constexpr(0x100), tl.constexpr(0x200)


@triton.jit
def draw_bits(keys_ptr, slot, step, PURPOSE: tl.constexpr, local, BLOCK: tl.constexpr):
    """[BLOCK] uint16 for the elements from `local` on, a multiple of 8."""
    block = local // 8 + tl.arange(0, BLOCK // 8)
    zero = tl.zeros([BLOCK // 8], tl.uint32)
    key = tl.load(keys_ptr) ^ tl.load(keys_ptr + 1 + slot)
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    number = step.to(tl.int64).to(tl.uint32)
    w0, w1, w2, w3 = short_philox(
        block.to(tl.uint32), (block >> 32).to(tl.uint32), zero + number, zero + PURPOSE, low, high
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK // 2])
    return tl.reshape(tl.join(words.to(tl.uint16), (words >> 16).to(tl.uint16)), [BLOCK])


@triton.jit
def turning_bits(keys_ptr, slot, step, WHICH: tl.constexpr, local, BLOCK: tl.constexpr):
    """The same of a state, drawn for step 0 and turned on by each: in many steps, an element meets all there are."""
    turn = ((step.to(tl.int64) * TURN) & 0xFFFF).to(tl.uint16)
    return draw_bits(keys_ptr, slot, step * 0.0, STATES + WHICH, local, BLOCK) + turn


@triton.jit
def round_at_random(x, bits):
    """A float32 or float64 tile as bfloat16; `bits` are uint16."""
    # By integers alone: a conversion may flush what is subnormal.
    whole = x.to(tl.float32).to(tl.uint32, bitcast=True)
    is_finite = (whole & 0x7F800000) != 0x7F800000
    other = tl.where((whole & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, whole >> 16).to(tl.uint32)
    halves = tl.where(is_finite, (whole + bits.to(tl.uint32)) >> 16, other)
    return halves.to(tl.uint16).to(tl.bfloat16, bitcast=True)
