"""How gradients are read: at full width where their length and address allow it, never past their end."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.triton.launch import TILE
from tests.support.catch import step_launch
from tests.support.compiled import GFX942, SM90, compile_for, threads
from tests.support.rules import CASES

CASE = CASES["sgd"]
ELEMENTS = TILE.block // (threads(SM90))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("source", DTYPES, ids=str)
# The values of these launches: their accesses are the same in all of them.
VALUES = ELEMENTS * 4 // 16


@each_dtype
def test_aligned(source):
    """Two branches: whole multiples of 16 elements in wide loads, ragged lengths one element at a time."""
    code = compile_for(SM90, step_launch(CASE, source=source))
    assert code.wide("ld") == VALUES + ELEMENTS * source.itemsize // 16
    assert code.masked_scalars(source.itemsize) == ELEMENTS


@each_dtype
def test_an_odd_address_compiles_nothing_anew(source):
    """Which branch is taken is decided for each tile: one gradient askew neither slows the others nor stalls a step."""
    aligned, askew = (compile_for(SM90, step_launch(CASE, source=source, shift=shift)) for shift in (0, 1))
    assert askew.compiled.hash == aligned.compiled.hash


def test_dtypes_that_differ_are_branches():
    """Four dtypes, each wide or ragged; float64 is narrowed, not computed with."""
    code = compile_for(SM90, step_launch(CASE, mixed=True))
    sizes = [4, 2, 2, 8]
    assert code.wide("ld") == VALUES + sum(ELEMENTS * size // 16 for size in sizes)
    assert code.masked_scalars(2) == 2 * ELEMENTS
    assert code.masked_scalars(8) == ELEMENTS
    assert "cvt.rn.f32.f64" in code.assembly
    assert code.double_arithmetic() == []


@each_dtype
def test_every_source_load_is_masked(source):
    """An unmasked one would read where nothing may lie."""
    code = compile_for(SM90, step_launch(CASE, source=source))
    wide = [line for line in code.assembly.splitlines() if "ld.global.v4" in line]
    assert len(wide) == code.wide("ld")
    assert all(line.strip().startswith("@%p") for line in wide)


@each_dtype
def test_amd(source):
    elements = TILE.block // (threads(GFX942))
    code = compile_for(GFX942, step_launch(CASE, source=source))
    assert code.wide("ld") == elements * 4 // 16 + elements * source.itemsize // 16
    assert code.widths["ld"].count(source.itemsize) >= elements
