"""The step kernel as compiled: full-width streams, no spills, no double precision, no contraction, any rule."""

from __future__ import annotations

import re

import pytest
import torch

from flatvars.kernels.rules import MUON_APPLY, MUON_DIRECTION
from flatvars.kernels.triton.launch import TILE, TILES
from tests.support.catch import accumulate_launch, step_launch
from tests.support.compiled import GFX942, SM80, SM90, SM100, compile_for, threads
from tests.support.rules import CASES, Case

RULES = ["sgd", "momentum", "adam", "adamw", "amsgrad", "lion", "rmsprop", "rmsprop-both", "user"]
RULES += ["adagrad-all", "adadelta", "adamax", "nadam", "radam", "rprop", "asgd"]
RULES += ["stable-adamw", "lamb", "lars", "mars", "cautious-updates"]
RULES += ["adamw-cautious-decay", "adopt", "ademamix-warmup", "grams", "adan", "schedule-free-adamw"]
RULES += ["ema-adamw", "ema-lamb"]
CUDA = {"sm80": SM80, "sm90": SM90, "sm100": SM100}
TARGETS = {**CUDA, "gfx942": GFX942}
each_cuda = pytest.mark.parametrize("target", CUDA.values(), ids=CUDA)
# float32, which takes more registers, on every target; conversions of bfloat16 where most will run.
each_pair = pytest.mark.parametrize(
    ("target", "dtype"),
    [*((target, torch.float32) for target in TARGETS.values()), (SM90, torch.bfloat16)],
    ids=[*(f"{name}-float32" for name in TARGETS), "sm90-bfloat16"],
)


def no_truth(*_):
    """For what is compiled and not run."""
    raise NotImplementedError


def wide_accesses(target, *dtypes, tile=TILE):
    """16-byte accesses of a thread for one tile of each of these streams."""
    elements = tile.block // (threads(target, tile))
    return sum(elements * dtype.itemsize // 16 for dtype in dtypes)


def check_code(code, case, values, source, states=None):
    streams = [values] + [states or values] * len(case.rule.states)
    moved = case.rule.statistics is not None and case.rule.statistics.moves
    assert code.wide("ld") == wide_accesses(code.target, *([] if moved else [source]), *streams, tile=code.tile)
    assert code.wide("st") == wide_accesses(code.target, *streams[: 1 + case.rule.stored], tile=code.tile)
    # What else is stored: the variable's count, its counter of programs, how many steps were skipped; its own scalars.
    assert [width for width in code.widths["st"] if width != 16] == [4] * (3 + len(case.rule.own))
    assert code.spilled == 0


def check_arithmetic(code, case):
    if case.rule.wide:  # scalars are computed in double, once a tile; no element is
        assert code.double_arithmetic() != []
        assert "xf64>" not in code.ttir
    else:
        assert code.double_arithmetic() == []
    assert ".local" not in code.assembly
    assert "fma." not in code.assembly
    assert code.narrow_products() == []


@pytest.mark.parametrize("name", RULES)
def test_rules_in_bfloat16(name):
    """In float32 with a mask below, which takes more registers."""
    code = compile_for(SM90, step_launch(CASES[name], torch.bfloat16))
    check_code(code, CASES[name], torch.bfloat16, torch.bfloat16)
    check_arithmetic(code, CASES[name])


@each_pair
@pytest.mark.parametrize("name", ["adamw", "amsgradw", "nadam", "radam", "asgd"])
def test_targets(name, target, dtype):
    code = compile_for(target, step_launch(CASES[name], dtype))
    check_code(code, CASES[name], dtype, dtype)
    if target is not GFX942:
        check_arithmetic(code, CASES[name])


def test_amd_in_bfloat16():
    dtype = torch.bfloat16
    check_code(compile_for(GFX942, step_launch(CASES["adamw"], dtype)), CASES["adamw"], dtype, dtype)


MUON_GROUP = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "scale": 0.2, "cautious_decay": True}
WIDE, NARROW = torch.float32, torch.bfloat16
# Rule; dtypes of the gradient's place and of states; of what is read and written. Directions of matrices are bfloat16.
AROUND = {
    "adafactor": (CASES["adafactor"], WIDE, WIDE, [WIDE, WIDE], [WIDE]),
    "muon-direction": (Case(MUON_DIRECTION, MUON_GROUP, no_truth), WIDE, NARROW, [WIDE, WIDE], [WIDE, NARROW]),
    "muon-apply": (Case(MUON_APPLY, MUON_GROUP, no_truth), NARROW, WIDE, [WIDE, NARROW], [WIDE]),
}


@pytest.mark.parametrize(("case", "source", "states", "read", "written"), AROUND.values(), ids=AROUND)
def test_launches_around_directions(case, source, states, read, written):
    """Adafactor's, and those of Muon and NorMuon, of which the first reads no direction."""
    code = compile_for(SM90, step_launch(case, WIDE, source=source, state_dtype=states))
    assert code.wide("ld") == wide_accesses(SM90, *read)
    assert code.wide("st") == wide_accesses(SM90, *written)
    assert code.spilled == 0
    check_arithmetic(code, case)


@each_pair
@pytest.mark.parametrize("tile", TILES[1:], ids=lambda tile: str(tile.block))
def test_blocks_for_small_variables(tile, target, dtype):
    code = compile_for(target, step_launch(CASES["adamw"], dtype, shapes=[(tile.block,)] * 12))
    assert code.tile == tile
    if target is GFX942:  # four elements a thread in the smallest block: 8 bytes of bfloat16
        assert code.wide("st") == wide_accesses(target, *[dtype] * 3, tile=tile)
        assert code.spilled == 0
    else:
        check_code(code, CASES["adamw"], dtype, dtype)
    norm = compile_for(target, accumulate_launch("norm", dtype, shapes=[(tile.block,)] * 12))
    assert norm.spilled == 0


def test_loads_of_a_tile_wait_for_no_other():
    """All wide loads of values and states come before the first branch behind them, on which a gradient's depend."""
    lines = compile_for(SM90, step_launch(CASES["lion"])).machine_code()
    loads = [i for i, line in enumerate(lines) if "LDG.E.128" in line]
    values, gradient = loads[:4], loads[4:]
    assert len(gradient) == 2
    assert not any(re.search(r"\bBRA\b|FMUL|FADD", line) for line in lines[values[0] : values[-1]])
    assert not any(re.search(r"FMUL|FADD", line) for line in lines[values[-1] : gradient[-1]])


def test_every_warp_has_read_the_count_before_the_program_arrives():
    """The last one to arrive raises it at once, whatever other warps of other programs still have to read."""
    assert compile_for(SM90, step_launch(CASES["adamw"])).arrivals() == [True]


def test_a_warp_of_hopper_has_few_registers():
    """32 warps a multiprocessor, four programs of 8: both decay when they move."""
    assert compile_for(SM90, step_launch(CASES["adamw"])).registers <= 64
    assert compile_for(SM90, step_launch(CASES["lion"])).registers <= 52


@each_cuda
def test_views_cost_two_scalars(target):
    """Whether a variable was written is read once a program."""
    viewed = compile_for(target, step_launch(CASES["adamw"], viewed=True))
    assert viewed.more_loads_than(compile_for(target, step_launch(CASES["adamw"]))) == {4: 2}
    check_code(viewed, CASES["adamw"], torch.float32, torch.float32)


@each_pair
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", ["adamw", "amsgradw", "lamb"])
def test_views_are_cleared_at_full_width(name, skip, target, dtype):
    """A stream more that is stored, twice in the code where a step may be skipped; a few registers, and no spills."""
    case = CASES[name]
    options = {"source": dtype, "viewed": True, "skip": skip, "max_norm": None}
    plain, cleared = (compile_for(target, step_launch(case, dtype, **options, clear=on)) for on in (False, True))
    streams = [dtype] * (1 + case.rule.stored)
    assert cleared.wide("st") == wide_accesses(target, *streams, *[dtype] * (1 + skip))
    assert [width for width in cleared.widths["st"] if width != 16] == [
        width for width in plain.widths["st"] if width != 16
    ]
    assert cleared.spilled == 0
    if target is not GFX942:  # there, wide loads of scalars are among them
        assert cleared.wide("ld") == plain.wide("ld")
        assert cleared.registers <= plain.registers + 8
        check_arithmetic(cleared, case)


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
    check_code(compile_for(target, launch), CASES["adamw"], values, source, states)


@each_pair
@pytest.mark.parametrize("name", ["adamw", "adadelta"])
def test_rounding_at_random(name, target, dtype):
    """Once a tile for each state that it is for: streams move as before, and nothing spills."""
    launch = step_launch(CASES[name], dtype, state_dtype=torch.bfloat16, drawn=True)
    code = compile_for(target, launch)
    check_code(code, CASES[name], dtype, dtype, torch.bfloat16)
    if target is not GFX942:
        check_arithmetic(code, CASES[name])


@each_pair
@pytest.mark.parametrize("name", ["adamw", "amsgradw"])
def test_a_mask_is_8_bytes_a_thread(name, target, dtype):
    """In pieces that go with those of the values: no tile passes through shared memory because of it."""
    masked = compile_for(target, step_launch(CASES[name], dtype, masked=True))
    plain = compile_for(target, step_launch(CASES[name], dtype))
    check_code(masked, CASES[name], dtype, dtype)
    assert masked.more_loads_than(plain) == ({4: 2} if dtype == torch.float32 else {8: 1})
    assert masked.shared == plain.shared
    if target is not GFX942:
        check_arithmetic(masked, CASES[name])


@pytest.mark.parametrize("target", [SM90, GFX942], ids=["sm90", "gfx942"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_masked(name, target):
    code = compile_for(target, step_launch(CASES[name], torch.float32, masked=True))
    check_code(code, CASES[name], torch.float32, torch.float32)
    if target is SM90:
        check_arithmetic(code, CASES[name])


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


@each_pair
def test_a_grad_scaler_costs_two_scalars(target, dtype):
    """Its scale and its verdict, read once a program; the streams stay as wide, and nothing spills."""
    code = compile_for(target, step_launch(CASES["adamw"], dtype, skip=False, scaled=True))
    check_code(code, CASES["adamw"], dtype, dtype)
    if target is not GFX942:
        check_arithmetic(code, CASES["adamw"])
        plain = compile_for(target, step_launch(CASES["adamw"], dtype, skip=False))
        assert len(code.widths["ld"]) - len(plain.widths["ld"]) == 3  # and the counter it adds to


def test_options_are_the_launchers():
    metadata = compile_for(SM90, step_launch(CASES["adamw"])).compiled.metadata
    assert metadata.num_warps == TILE.warps
    assert metadata.enable_fp_fusion is False


@pytest.mark.parametrize("target", [SM90, GFX942], ids=["sm90", "gfx942"])
def test_a_step_that_tells_reads_no_stream_more(target):
    case = CASES["adamw"]
    code = compile_for(target, step_launch(case, observed=True))
    assert code.wide("ld") == wide_accesses(target, *[torch.float32] * 4, tile=code.tile)
    assert code.wide("st") == wide_accesses(target, *[torch.float32] * 3, tile=code.tile)
    assert code.spilled == 0


def test_values_by_address():
    """Nothing is known of where they lie: one element at a time; gradients and states at full width as ever."""
    code = compile_for(SM90, step_launch(CASES["adamw"], placed=True))
    states = [torch.float32] * 2
    assert code.wide("ld") == wide_accesses(SM90, torch.float32, *states)
    assert code.wide("st") == wide_accesses(SM90, *states)
    assert code.spilled == 0
    assert code.narrow_products() == []
