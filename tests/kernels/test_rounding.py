"""Stores to bfloat16 and float16 round to nearest even, in the interpreter as on hardware."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from flatvars.kernels.triton.tiles import DTYPES, round_to
from tests.support.tolerances import assert_same_bits

BLOCK = 65_536
# Lower halves of a float32: exact, just below, at and just above a tie, all ones, and two of no meaning.
LOWER = [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1234, 0xABCD]


@pytest.fixture(autouse=True)
def backend():
    """Triton's rounding; the other one's is in test_formats.py."""
    return "triton"


@triton.jit
def round_kernel(x_ptr, out_ptr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offset, round_to(tl.load(x_ptr + offset), DTYPE))


def rounded(x, dtype):
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    round_kernel[(x.numel() // BLOCK,)](x, out, DTYPE=DTYPES[dtype], BLOCK=BLOCK)
    return out


def all_upper_halves(lower, device):
    bits = (torch.arange(2**16, dtype=torch.int64) << 16) | lower
    return bits.to(torch.int32).view(torch.float32).to(device)


@pytest.mark.parametrize("lower", LOWER, ids=hex)
def test_bfloat16_as_torch(lower, device):
    """Every sign, exponent and upper mantissa, infinities and NaN among them.

    Not subnormals: processors with an instruction for this conversion flush them to zero in torch.
    """
    x = all_upper_halves(lower, device)
    actual, expected = rounded(x, torch.bfloat16), x.to(torch.bfloat16)
    assert torch.equal(actual.isnan(), expected.isnan())
    number = ~expected.isnan() & ((x == 0) | (x.abs() >= torch.finfo(torch.float32).tiny))
    assert_same_bits(actual[number], expected[number])


def test_truncation_would_be_seen(device):
    """What the interpreter does by itself is another number in half of all cases."""
    x = all_upper_halves(0x8001, device)
    truncated = (x.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
    finite = x.isfinite()
    assert (truncated[finite] != rounded(x, torch.bfloat16)[finite]).double().mean() > 0.9


def test_float16_as_torch(device):
    x = torch.randn(BLOCK, device=device) * torch.logspace(-9, 6, BLOCK, device=device)
    assert_same_bits(rounded(x, torch.float16), x.to(torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_happens_to_what_is_as_wide(dtype, device):
    x = torch.randn(BLOCK, device=device)
    assert_same_bits(rounded(x, dtype), x.to(dtype))
