"""Random words: known answers of Philox, and one stream in the kernel, in NumPy and in Triton's own function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from flatvars.kernels.triton.philox import philox, philox_words, short_philox
from tests.support import draws

# From Random123's kat_vectors, philox4x64 with 10 rounds: counter, key, words.
ALL = 2**64 - 1
KNOWN_64 = {
    "zeros": ((0,) * 4, (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    "ones": ((ALL,) * 4, (ALL,) * 2, (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    "pi": (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
}
# philox4x32 with 7 rounds, which `tl.philox` computes for 32-bit counters as well: key as one 64-bit seed.
KNOWN_32 = {
    "zeros": ((0,) * 4, 0, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    "ones": ((2**32 - 1,) * 4, ALL, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
}


@pytest.fixture(autouse=True)
def backend():
    """Numba's generator is held against this one in test_fill.py."""
    return "triton"


@triton.jit
def known_64_kernel(inputs_ptr, out_ptr):
    """inputs: four counters and two keys."""
    lane = tl.arange(0, 2)
    zero = tl.zeros([2], tl.uint64)
    c0, c1 = zero + tl.load(inputs_ptr).to(tl.uint64), zero + tl.load(inputs_ptr + 1).to(tl.uint64)
    c2, c3 = zero + tl.load(inputs_ptr + 2).to(tl.uint64), zero + tl.load(inputs_ptr + 3).to(tl.uint64)
    k0, k1 = tl.load(inputs_ptr + 4).to(tl.uint64), tl.load(inputs_ptr + 5).to(tl.uint64)
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + lane, w0.to(tl.int64))
    tl.store(out_ptr + 2 + lane, w1.to(tl.int64))
    tl.store(out_ptr + 4 + lane, w2.to(tl.int64))
    tl.store(out_ptr + 6 + lane, w3.to(tl.int64))


@triton.jit
def known_32_kernel(inputs_ptr, out_ptr):
    """inputs: four counters and a key of 64 bits."""
    lane = tl.arange(0, 2)
    zero = tl.zeros([2], tl.uint32)
    c0, c1 = zero + tl.load(inputs_ptr).to(tl.uint32), zero + tl.load(inputs_ptr + 1).to(tl.uint32)
    c2, c3 = zero + tl.load(inputs_ptr + 2).to(tl.uint32), zero + tl.load(inputs_ptr + 3).to(tl.uint32)
    key = tl.load(inputs_ptr + 4)
    w0, w1, w2, w3 = short_philox(c0, c1, c2, c3, key.to(tl.uint32), (key >> 32).to(tl.uint32))
    tl.store(out_ptr + lane, w0.to(tl.int64))
    tl.store(out_ptr + 2 + lane, w1.to(tl.int64))
    tl.store(out_ptr + 4 + lane, w2.to(tl.int64))
    tl.store(out_ptr + 6 + lane, w3.to(tl.int64))


@triton.jit
def triton_philox_kernel(inputs_ptr, out_ptr, WIDTH: tl.constexpr):
    """Triton's own: inputs are four counters and a seed."""
    lane = tl.arange(0, 2)
    dtype = tl.uint64 if WIDTH == 64 else tl.uint32
    zero = tl.zeros([2], dtype)
    c0, c1 = zero + tl.load(inputs_ptr).to(dtype), zero + tl.load(inputs_ptr + 1).to(dtype)
    c2, c3 = zero + tl.load(inputs_ptr + 2).to(dtype), zero + tl.load(inputs_ptr + 3).to(dtype)
    w0, w1, w2, w3 = tl.philox(tl.load(inputs_ptr + 4), c0, c1, c2, c3, 10 if WIDTH == 64 else 7)
    tl.store(out_ptr + lane, w0.to(tl.int64))
    tl.store(out_ptr + 2 + lane, w1.to(tl.int64))
    tl.store(out_ptr + 4 + lane, w2.to(tl.int64))
    tl.store(out_ptr + 6 + lane, w3.to(tl.int64))


@triton.jit
def words_kernel(inputs_ptr, out_ptr, BLOCKS: tl.constexpr):
    """inputs: seed, key, block."""
    words = philox_words(tl.load(inputs_ptr), tl.load(inputs_ptr + 1), tl.load(inputs_ptr + 2), BLOCKS)
    tl.store(out_ptr + tl.arange(0, 4 * BLOCKS), words.to(tl.int64))


def signed(numbers, device):
    return torch.from_numpy(np.array(numbers, dtype=np.uint64).view(np.int64)).to(device)


def unsigned(words):
    return words.cpu().numpy().view(np.uint64)


def run(kernel, inputs, device, count=8, **options):
    out = torch.zeros(count, dtype=torch.int64, device=device)
    kernel[(1,)](signed(inputs, device), out, **options)
    return unsigned(out)


@pytest.mark.row("J-14")
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_64.values(), ids=KNOWN_64)
def test_known_answers(counter, key, words, device):
    assert run(known_64_kernel, [*counter, *key], device).tolist() == [word for word in words for _ in range(2)]


@pytest.mark.row("J-14")
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_64.values(), ids=KNOWN_64)
def test_known_answers_of_numpy(counter, key, words, device):
    """NumPy raises its counter before it generates: the known words come from the counter before."""
    before = sum(c << (64 * i) for i, c in enumerate(counter)) - 1
    state = np.array([(before >> (64 * i)) & ALL for i in range(4)], dtype=np.uint64)
    generator = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=state)
    assert generator.random_raw(4).tolist() == list(words)


@pytest.mark.row("J-14")
@pytest.mark.parametrize(("counter", "seed", "words"), KNOWN_32.values(), ids=KNOWN_32)
def test_known_answers_of_32_bits(counter, seed, words, device):
    """Of the kernel, of Triton's own function, and of the specification in NumPy."""
    own = run(known_32_kernel, [*counter, seed], device)
    other = run(triton_philox_kernel, [*counter, seed], device, WIDTH=32)
    for out in (own, other):
        assert [word & 0xFFFFFFFF for word in out.tolist()] == [word for word in words for _ in range(2)]
    assert draws.short_philox([counter], seed).tolist() == [list(words)]


@pytest.mark.row("J-14")
def test_it_is_tritons_where_the_second_key_is_zero(device):
    counter, seed = KNOWN_64["pi"][0], 2**63 + 12345
    ours = run(known_64_kernel, [*counter, seed, 0], device)
    assert ours.tolist() == run(triton_philox_kernel, [*counter, seed], device, WIDTH=64).tolist()


@pytest.mark.row("J-15")
@pytest.mark.parametrize(("seed", "key"), [(0, 0), (1, 2), (2**63, 2**64 - 1), (2**32, 2**32 + 1)])
@pytest.mark.parametrize("block", [0, 1, 1000, 2**31, 2**40])
def test_words_are_numpys_stream(block, seed, key, device):
    words = run(words_kernel, [seed, key, block], device, count=256, BLOCKS=64)
    generator = np.random.Philox(key=np.array([seed, key], dtype=np.uint64))
    generator.advance(block)
    assert words.tolist() == generator.random_raw(256).tolist()
