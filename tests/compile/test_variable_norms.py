"""The kernel of per-variable norms as compiled."""

from __future__ import annotations

import math
import re

import pytest
import torch

from flatvars.kernels.triton.launch import TILE
from tests.support.catch import norms_launch
from tests.support.compiled import GFX942, SM80, SM90, SM100, compile_for, threads

TARGETS = {"sm80": SM80, "sm90": SM90, "sm100": SM100, "gfx942": GFX942}
ORDERS = [1.0, 2.0, 3.0, math.inf]


def wide(target, dtype):
    return TILE.block // (threads(target)) * dtype.itemsize // 16


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_targets(target):
    code = compile_for(target, norms_launch(2.0))
    assert code.wide("ld") >= 2 * wide(target, torch.float32)
    assert code.spilled == 0
    assert code.narrow_products() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_orders(order, dtype):
    code = compile_for(SM90, norms_launch(order, dtype))
    assert code.wide("ld") == 2 * wide(SM90, dtype)
    assert code.masked_scalars(dtype.itemsize) >= TILE.block // (threads(SM90))
    assert code.double_arithmetic() == []
    assert ".local" not in code.assembly
    assert code.spilled == 0


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_mask_is_8_bytes_a_thread(target):
    masked, plain = (compile_for(target, norms_launch(2.0, masked=masked)) for masked in (True, False))
    assert masked.more_loads_than(plain) == {4: 2}
    assert masked.shared == plain.shared
    assert masked.spilled == 0


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_no_contraction_where_no_logarithm_is_taken(order):
    assert "fma." not in compile_for(SM90, norms_launch(order)).assembly


def test_values_alone_read_no_gradient():
    code = compile_for(SM90, norms_launch(2.0, grads=False))
    assert code.wide("ld") == wide(SM90, torch.float32)
    assert code.masked_scalars(4) == 0


def test_last_program_of_a_variable_sees_what_the_others_stored():
    code = compile_for(SM90, norms_launch(2.0))
    assert re.findall(r"atom\.global\.gpu\.acq_rel\.add", code.assembly)
    assert re.findall(r"ld\.global\.cg\.b32", code.assembly)
