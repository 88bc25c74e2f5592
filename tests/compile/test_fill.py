"""The fill kernel as compiled: full-width stores, IEEE arithmetic that nothing fuses, nothing in double."""

from __future__ import annotations

import re
from unittest.mock import patch

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.backend import use_backend
from flatvars.kernels.triton.launch import TILE
from tests.support.catch import fill_launch
from tests.support.compiled import GFX942, SM80, SM90, SM100, captured, compile_for, threads

CUDA = {"sm80": SM80, "sm90": SM90, "sm100": SM100}
DTYPES = [torch.float32, torch.bfloat16]


def check_code(code, dtype, scattered):
    elements = TILE.block // threads(code.target)
    assert code.wide("st") == elements * dtype.itemsize // 16
    # A ragged end is stored one element at a time, and so is a variable in another memory order.
    narrow = [width for width in code.widths["st"] if width != 16]
    assert narrow == [dtype.itemsize] * elements * (2 if scattered else 1)
    assert code.spilled == 0


@pytest.mark.parametrize(
    ("target", "dtype"),
    [*((target, torch.float32) for target in CUDA.values()), (SM90, torch.bfloat16)],
    ids=[*(f"{name}-float32" for name in CUDA), "sm90-bfloat16"],
)
@pytest.mark.parametrize("permuted", [False, True], ids=["row-major", "permuted"])
def test_cuda(permuted, target, dtype):
    code = compile_for(target, fill_launch(dtype, permuted=permuted))
    check_code(code, dtype, permuted)
    assert code.double_arithmetic() == []
    assert ".local" not in code.assembly
    assert code.narrow_products() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("permuted", [False, True], ids=["row-major", "permuted"])
def test_amd(permuted, dtype):
    check_code(compile_for(GFX942, fill_launch(dtype, permuted=permuted)), dtype, permuted)


@pytest.mark.row("J-15")
@pytest.mark.parametrize("target", CUDA.values(), ids=CUDA)
def test_every_operation_is_rounded_alone(target):
    """What makes a GPU's bits those of the CPU: no fused, approximate or flushing instruction."""
    code = compile_for(target, fill_launch())
    arithmetic = set(
        re.findall(r"\b((?:add|sub|mul|fma|mad|div|sqrt|rcp|ex2|lg2|sin|cos)\.[\w.]*f32)\b", code.assembly)
    )
    assert arithmetic == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "div.rn.f32", "sqrt.rn.f32"}


@pytest.mark.row("J-15")
def test_nothing_may_be_fused_on_amd():
    """The assembly has fused instructions inside of IEEE divisions; the code it is made from allows no other."""
    llir = compile_for(GFX942, fill_launch()).compiled.asm["llir"]
    assert re.findall(r"f(?:mul|add|sub) (?:contract|fast|reassoc|afn)", llir) == []
    assert "fmuladd" not in llir
    assert "fmul float" in llir


def test_float64_is_widened():
    """Random values are computed in float32; only the constant and the store are double."""
    code = compile_for(SM90, fill_launch(torch.float64))
    assert code.wide("st") == TILE.block // threads(SM90) * 8 // 16
    assert "mul.f64" not in code.assembly
    assert "mul.rn.f64" not in code.assembly
    assert "mul.rn.f32" in code.assembly


def test_the_number_of_variables_is_not_compiled_in():
    assert compile_for(SM90, fill_launch()).signature["variables"] == "i32"


def test_a_thousand_layers_from_meta_are_one_launch():
    """The launch is caught: nothing runs."""
    with torch.device("meta"):
        module = nn.Sequential(*[nn.Linear(8, 8) for _ in range(1000)])
    rules = {"*.bias": fv.init.zeros(), "*": fv.init.kaiming_uniform()}
    with patch("flatvars.backend.INTERPRETED", True), use_backend("triton"):
        launch = captured(lambda: fv.VarStore.from_module(module, init=rules))
    table, stream, variables = launch.args
    assert launch.kernel.fn.__name__ == "fill_kernel"
    assert variables == 4 * 2000
    assert len(table) == variables + 2000 * launch.kwargs["COLUMNS"]
    assert len(stream) >= 1000 * (64 + 8)
