"""The step kernel as compiled: full-width streams, no spills, no double precision, no contraction, any rule."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.triton.launch import TILE
from tests.support.catch import step_launch
from tests.support.compiled import GFX942, SM80, SM90, SM100, compile_for, threads
from tests.support.rules import CASES

RULES = ["sgd", "momentum", "adam", "adamw", "amsgrad", "lion", "rmsprop", "rmsprop-both", "user"]
CUDA = {"sm80": SM80, "sm90": SM90, "sm100": SM100}
DTYPES = [torch.float32, torch.bfloat16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_cuda = pytest.mark.parametrize("target", CUDA.values(), ids=CUDA)


def wide_accesses(target, *dtypes):
    """16-byte accesses of a thread for one tile of each of these streams."""
    elements = TILE.block // (threads(target))
    return sum(elements * dtype.itemsize // 16 for dtype in dtypes)


def check(code, case, values, source, states=None):
    streams = [values] + [states or values] * len(case.rule.states)
    assert code.wide("ld") == wide_accesses(code.target, source, *streams)
    assert code.wide("st") == wide_accesses(code.target, *streams)
    # What else is stored: the variable's count, its counter of programs, and how many steps were skipped.
    assert [width for width in code.widths["st"] if width != 16] == [4, 4, 4]
    assert code.spilled == 0


def check_arithmetic(code):
    assert code.double_arithmetic() == []
    assert ".local" not in code.assembly
    assert "fma." not in code.assembly
    assert code.narrow_products() == []


@each_dtype
@pytest.mark.parametrize("name", RULES)
def test_rules_on_hopper(name, dtype):
    code = compile_for(SM90, step_launch(CASES[name], dtype))
    check(code, CASES[name], dtype, dtype)
    check_arithmetic(code)


@each_dtype
@each_cuda
@pytest.mark.parametrize("name", ["adamw", "amsgradw"])
def test_targets(name, target, dtype):
    code = compile_for(target, step_launch(CASES[name], dtype))
    check(code, CASES[name], dtype, dtype)
    check_arithmetic(code)


@each_dtype
@pytest.mark.parametrize("name", RULES)
def test_rules_on_amd(name, dtype):
    check(compile_for(GFX942, step_launch(CASES[name], dtype)), CASES[name], dtype, dtype)


@pytest.mark.parametrize("target", [SM90, GFX942], ids=["sm90", "gfx942"])
@pytest.mark.parametrize(
    ("values", "source", "states"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16),
        (torch.float16, torch.float16, torch.float16),
    ],
    ids=["float32-stream", "bfloat16-gradients", "bfloat16-state", "float16"],
)
def test_streams_of_different_dtypes(values, source, states, target):
    launch = step_launch(CASES["adamw"], values, source=source, state_dtype=states)
    check(compile_for(target, launch), CASES["adamw"], values, source, states)


@each_dtype
@pytest.mark.parametrize("target", [*CUDA.values(), GFX942], ids=[*CUDA, "gfx942"])
@pytest.mark.parametrize("name", ["adamw", "amsgradw"])
def test_a_mask_is_8_bytes_a_thread(name, target, dtype):
    """In pieces that go with those of the values: no tile passes through shared memory because of it."""
    masked = compile_for(target, step_launch(CASES[name], dtype, masked=True))
    plain = compile_for(target, step_launch(CASES[name], dtype))
    check(masked, CASES[name], dtype, dtype)
    assert masked.more_loads_than(plain) == ({4: 2} if dtype == torch.float32 else {8: 1})
    assert masked.shared == plain.shared
    if target is not GFX942:
        check_arithmetic(masked)


@each_dtype
@pytest.mark.parametrize("target", [SM90, GFX942], ids=["sm90", "gfx942"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_masked(name, target, dtype):
    check(compile_for(target, step_launch(CASES[name], dtype, masked=True)), CASES[name], dtype, dtype)


@pytest.mark.parametrize("target", [SM90, GFX942], ids=["sm90", "gfx942"])
def test_float64(target):
    """Computed in double; spills are allowed there."""
    code = compile_for(target, step_launch(CASES["adamw"], torch.float64))
    assert code.wide("st") == wide_accesses(target, *[torch.float64] * 3)
    if target is SM90:
        assert code.double_arithmetic() != []
        assert "mul.f32" not in code.assembly


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("skip", [False, True])
def test_norm_is_read_only_where_it_is_needed(skip, max_norm):
    code = compile_for(SM90, step_launch(CASES["sgd"], max_norm=max_norm, skip=skip))
    plain = compile_for(SM90, step_launch(CASES["sgd"], max_norm=None, skip=False))
    extra = len(code.widths["ld"]) - len(plain.widths["ld"])
    # Clipping reads the norm and the group's max_norm; skipping the norm, and the counter it adds to.
    assert extra == 2 * (max_norm is not None) + 2 * skip


@each_dtype
@pytest.mark.parametrize("target", [*CUDA.values(), GFX942], ids=[*CUDA, "gfx942"])
def test_a_grad_scaler_costs_two_scalars(target, dtype):
    """Its scale and its verdict, read once a program; the streams stay as wide, and nothing spills."""
    code = compile_for(target, step_launch(CASES["adamw"], dtype, skip=False, scaled=True))
    check(code, CASES["adamw"], dtype, dtype)
    if target is not GFX942:
        check_arithmetic(code)
        plain = compile_for(target, step_launch(CASES["adamw"], dtype, skip=False))
        assert len(code.widths["ld"]) - len(plain.widths["ld"]) == 3  # and the counter it adds to


def test_options_are_the_launchers():
    metadata = compile_for(SM90, step_launch(CASES["adamw"])).compiled.metadata
    assert metadata.num_warps == TILE.warps
    assert metadata.enable_fp_fusion is False
