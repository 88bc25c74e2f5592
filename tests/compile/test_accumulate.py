"""The accumulate kernel as compiled: full-width streams, a norm in the same launch, reduced by the last program."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from flatvars.kernels.triton.launch import TILE
from flatvars.kernels.triton.squares import GROUP_UNITS
from tests.support.catch import accumulate_launch
from tests.support.compiled import GFX942, SM80, SM90, SM100, compile_for, threads

CUDA = {"sm80": SM80, "sm90": SM90, "sm100": SM100}
# Tiles read and written besides the source.
STREAMS = {"overwrite": (0, 1), "add": (1, 1), "norm": (0, 0)}


def wide(target, itemsize):
    return TILE.block // (threads(target)) * itemsize // 16


# Six programs of 8 warps have 40 registers a thread, five have 48.
REGISTERS = {"norm": 40, "overwrite": 48, "add": 48}


def check_code(code, mode, source):
    read, written = STREAMS[mode]
    tiles = wide(code.target, source.itemsize) + read * wide(code.target, 4)
    # AMD reads two columns of a row of the tile table at once: of the first tile, and of the next.
    assert code.wide("ld") - tiles in ([0] if code.target is not GFX942 else [0, 1, 2])
    assert code.wide("st") == written * wide(code.target, 4)
    # Sums of units, a group's counter, its sum, the counter of groups, the region's sum, the norm.
    assert sorted(width for width in code.widths["st"] if width != 16) == [4, 4, 4, 4, 8, 8]
    assert code.spilled == 0


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize(
    ("target", "source"),
    [*((target, torch.float32) for target in CUDA.values()), (SM90, torch.bfloat16)],
    ids=[*(f"{name}-float32" for name in CUDA), "sm90-bfloat16"],
)
def test_cuda(target, source, mode):
    code = compile_for(target, accumulate_launch(mode, source))
    check_code(code, mode, source)
    assert code.double_per_tile() == []
    assert {"add.f64", "add.rn.f64"} & set(code.double_arithmetic())
    assert ".local" not in code.assembly
    assert "fma." not in code.assembly
    assert code.narrow_products() == []
    assert code.registers <= REGISTERS[mode]


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", STREAMS)
def test_amd(mode, source):
    check_code(compile_for(GFX942, accumulate_launch(mode, source)), mode, source)


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize("target", [*CUDA.values(), GFX942], ids=[*CUDA, "gfx942"])
def test_a_mask_is_8_bytes_a_thread(target, mode):
    masked = compile_for(target, accumulate_launch(mode, masked=True))
    plain = compile_for(target, accumulate_launch(mode))
    check_code(masked, mode, torch.float32)
    if target is not GFX942:  # which reads columns of the tile table together, as it sees fit
        # The norm alone has no other use for where a tile starts in the region: the first one, and the next.
        assert masked.more_loads_than(plain) == Counter({4: 2, 8: 2 * (mode == "norm")})
    assert masked.shared == plain.shared


def test_an_odd_address_compiles_nothing_anew():
    aligned, askew = (compile_for(SM90, accumulate_launch("add", shift=shift)) for shift in (0, 1))
    assert askew.compiled.hash == aligned.compiled.hash


@pytest.mark.parametrize("target", CUDA.values(), ids=CUDA)
def test_a_tile_is_added_up_within_warps(target):
    """Neighbors first: a warp holds whole units, so one exchange between warps a tile is left, to store the sums."""
    code = compile_for(target, accumulate_launch("norm"))
    tile = code.assembly.split("atom.global")[0]
    assert len(re.findall(r"bar\.sync", tile)) <= 3
    assert len(re.findall(r"shfl\.sync", tile)) == 5 * TILE.block // (threads(target) * 4)


def test_last_program_sees_what_the_others_stored():
    """Release and acquire at device scope behind a barrier, then loads that bypass the L1 cache."""
    code = compile_for(SM90, accumulate_launch("norm"))
    assert code.arrivals() == [True, True]
    # Units of a group, four a thread, and groups, one a thread.
    assert len(re.findall(r"@%p\d+ ld\.global\.cg\.b32", code.assembly)) == 4
    assert len(re.findall(r"@%p\d+ ld\.global\.cg\.b64", code.assembly)) == 1


@pytest.mark.parametrize("target", [*CUDA.values(), GFX942], ids=[*CUDA, "gfx942"])
def test_which_views_were_written_costs_no_access(target):
    """It shows in the sums of units: what is read and written more belongs to groups."""
    viewed = compile_for(target, accumulate_launch("norm", viewed=True))
    plain = compile_for(target, accumulate_launch("norm"))
    assert viewed.wide("ld") == plain.wide("ld")
    assert viewed.spilled == 0
    if target is not GFX942:
        assert viewed.registers <= (48 if target is SM100 else 40)
    # Owners of a group's units and the launch's number; the marks, and the number raised.
    units = GROUP_UNITS // threads(target)
    assert len(viewed.widths["st"]) - len(plain.widths["st"]) == units + 1
    assert viewed.double_per_tile() == []


@pytest.mark.parametrize("mode", STREAMS)
def test_float64_is_summed_in_double(mode):
    code = compile_for(SM90, accumulate_launch(mode, torch.float64))
    assert {"add.f64", "add.rn.f64"} & set(code.double_arithmetic())
    assert not re.findall(r"\b(?:add|mul)\.(?:rn\.)?f32", code.assembly)


def test_float64_gets_its_scale_in_double():
    """A Python float becomes float32 in a launch: 0.1 would be wrong from the ninth digit."""
    assert compile_for(SM90, accumulate_launch("add", torch.float64)).signature["scale"] == "fp64"


def test_neither_slot_nor_number_of_tiles_and_units_is_compiled_in():
    """Triton specializes integers that are 1 or multiples of 16: every store would compile its own kernel."""
    signature = compile_for(SM90, accumulate_launch("norm")).signature
    assert signature["tiles"] == "i32"
    assert signature["units"] == "i32"
    assert signature["slot"] == "i32"
