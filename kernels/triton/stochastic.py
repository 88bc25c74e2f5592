"""Rounding to bfloat16 at random: up as often as the rest that is cut off is large, so that the mean is exact.

    r <- 16 bits of Philox(counter = (i // 16 + 1, step, purpose, which), key = (seed, name))
    x <- upper half of (bits of x + r)          i: position in the variable's memory

`purpose` is 1 of values and 2 of states, `which` the place of a state among those that the rule rounds.

Traffic: none beside the keys. Numerics: NaN and infinity pass as they are; the largest numbers may round to infinity.
A variable's draws depend on its name, its step and its own memory order: not on layout, tiles, threads or ranks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..formats import TURN as TURN_OF_A_STEP
from .philox import philox

TURN = tl.constexpr(TURN_OF_A_STEP)

# Third word of the counter: what the draws are for. Streams of one name and step must not share them.
VALUES, STATES = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def quarters(words):
    """[4 N] uint16 of [N] uint64: the 16-bit parts, low first."""
    a, b, c, d = words, words >> 16, words >> 32, words >> 48
    a, b, c, d = a.to(tl.uint16), b.to(tl.uint16), c.to(tl.uint16), d.to(tl.uint16)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [4 * words.shape[0]])


@triton.jit
def draw_bits(keys_ptr, slot, step, PURPOSE: tl.constexpr, WHICH: tl.constexpr, local, BLOCK: tl.constexpr):
    """[BLOCK] uint16 for the elements from `local` on, a multiple of 16."""
    counter = (local // 16 + 1 + tl.arange(0, BLOCK // 16)).to(tl.uint64)
    zero = tl.zeros([BLOCK // 16], tl.uint64)
    seed, key = tl.load(keys_ptr).to(tl.uint64), tl.load(keys_ptr + 1 + slot).to(tl.uint64)
    number = step.to(tl.int64).to(tl.uint64)
    w0, w1, w2, w3 = philox(counter, zero + number, zero + PURPOSE, zero + WHICH, seed, key)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK // 4])
    return quarters(words)


@triton.jit
def turning_bits(keys_ptr, slot, step, WHICH: tl.constexpr, local, BLOCK: tl.constexpr):
    """The same of a state, drawn for step 0 and turned on by each: in many steps, an element meets all there are."""
    turn = ((step.to(tl.int64) * TURN) & 0xFFFF).to(tl.uint16)
    return draw_bits(keys_ptr, slot, step * 0.0, STATES, WHICH, local, BLOCK) + turn


@triton.jit
def round_at_random(x, bits):
    """A float32 or float64 tile as bfloat16; `bits` are uint16."""
    # By integers alone: a conversion may flush what is subnormal.
    whole = x.to(tl.float32).to(tl.uint32, bitcast=True)
    is_finite = (whole & 0x7F800000) != 0x7F800000
    other = tl.where((whole & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, whole >> 16).to(tl.uint32)
    halves = tl.where(is_finite, (whole + bits.to(tl.uint32)) >> 16, other)
    return halves.to(tl.uint16).to(tl.bfloat16, bitcast=True)
