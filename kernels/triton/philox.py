"""Philox, the counter-based generator: random words as a function of (seed, key, block), in any order.

First values are made of 64-bit words, of Philox4x64-10:

    words of block b = Philox(counter = (b + 1, 0, 0, 0), key = (seed, key))

which is the stream of `numpy.random.Philox(key=[seed, key]).random_raw()` from its first word on: NumPy raises its
counter before it generates. Numbers are rounded by Philox4x32-7 (`stochastic.py`), which takes a third of the products
for as many bits: processors multiply 32 bits at a time, the lanes of a vector as well as GPUs, and seven rounds are as
many as BigCrush finds no fault with; ten are a margin. Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2,
3 (SC 2011).

`tl.philox` computes the same rounds; they are written out here because its second key word is always 0 and the values
of initialized models must not depend on a Triton version.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUND_A = tl.constexpr(0xD2E7470EE14C6C93)
ROUND_B = tl.constexpr(0xCA5A826395121157)
KEY_A = tl.constexpr(0x9E3779B97F4A7C15)
KEY_B = tl.constexpr(0xBB67AE8584CAA73B)
SHORT_A, SHORT_B = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
SHORT_KEY_A, SHORT_KEY_B = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x64; counters and keys are uint64. Products wrap on purpose."""
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(b, ROUND_B) ^ c1 ^ k0
        c2 = tl.umulhi(a, ROUND_A) ^ c3 ^ k1
        c1 = tl.mul(b, ROUND_B, sanitize_overflow=False)
        c3 = tl.mul(a, ROUND_A, sanitize_overflow=False)
        k0 = tl.add(k0, KEY_A, sanitize_overflow=False)
        k1 = tl.add(k1, KEY_B, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def short_philox(c0, c1, c2, c3, k0, k1):
    """Seven rounds of Philox4x32; counters and keys are uint32."""
    for _ in tl.static_range(7):
        a, b = c0, c2
        c0 = tl.umulhi(b, SHORT_B) ^ c1 ^ k0
        c2 = tl.umulhi(a, SHORT_A) ^ c3 ^ k1
        c1 = tl.mul(b, SHORT_B, sanitize_overflow=False)
        c3 = tl.mul(a, SHORT_A, sanitize_overflow=False)
        k0 = tl.add(k0, SHORT_KEY_A, sanitize_overflow=False)
        k1 = tl.add(k1, SHORT_KEY_B, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def philox_words(seed, key, block, BLOCKS: tl.constexpr):
    """The words of `BLOCKS` blocks from `block` (int64) on, [4 * BLOCKS] uint64 in stream order.

    A program computes each block once: four words are eight elements of 32 bits.
    """
    counter = (block + 1 + tl.arange(0, BLOCKS)).to(tl.uint64)
    zero = tl.zeros([BLOCKS], tl.uint64)
    w0, w1, w2, w3 = philox(counter, zero, zero, zero, seed.to(tl.uint64), key.to(tl.uint64))
    # Each join adds a fastest axis: [BLOCKS, 2, 2] with word 2i + j at (i, j).
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [4 * BLOCKS])
