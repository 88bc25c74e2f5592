"""Offsets are 64-bit before anything is multiplied: beyond 2^31 elements a 32-bit product wraps."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.support.catch import accumulate_launch, fill_launch, norms_launch, step_launch
from tests.support.compiled import SM90, captured, compile_for
from tests.support.rules import CASES


@triton.jit
def wrapping_kernel(x_ptr, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offset, 0.0)


@triton.jit
def wide_kernel(x_ptr, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offset, 0.0)


LAUNCHES = {
    "step": lambda: step_launch(CASES["adamw"]),
    "step-mixed": lambda: step_launch(CASES["adamw"], mixed=True),
    "overwrite": lambda: accumulate_launch("overwrite"),
    "add": lambda: accumulate_launch("add"),
    "norm": lambda: accumulate_launch("norm"),
    "variable-norms": lambda: norms_launch(2.0),
    "fill": fill_launch,
    "fill-permuted": lambda: fill_launch(permuted=True),
}


@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES)
def test_no_product_of_32_bits(launch):
    code = compile_for(SM90, launch())
    assert code.narrow_products() == []


def probe(kernel):
    return compile_for(SM90, captured(lambda: kernel[(8,)](torch.zeros(1024), BLOCK=1024)))


def test_the_check_finds_the_naive_form():
    assert probe(wrapping_kernel).narrow_products() != []
    assert probe(wide_kernel).narrow_products() == []
