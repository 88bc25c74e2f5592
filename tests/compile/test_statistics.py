"""The statistics kernel as compiled: full-width streams, what no term needs is not read, no spills, double in the end
alone."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.catch import step_launch
from tests.support.compiled import GFX942, SM80, SM90, SM100, compile_for
from tests.support.rules import CASES

from .test_step import wide_accesses

TARGETS = {"sm80": SM80, "sm90": SM90, "sm100": SM100, "gfx942": GFX942}
# Streams that each reads beside the gradient, and that it writes.
STREAMS = {"stable-adamw": (1, 0), "lamb": (3, 2), "lars": (1, 0), "mars": (1, 0), "cautious-updates": (2, 0)}
STREAMS["prodigy"] = (5, 4)
# The last program of a variable reads its units: four to a thread, of the first sum, whose row is aligned, where AMD's
# compiler sees it; that of Triton 3.6 does not.
UNITS = {GFX942: (0, 1)}
# Registers that five streams beside the gradient take too many on CDNA 3.
SPILLED = {("prodigy", GFX942): 4}


@pytest.mark.parametrize(
    ("target", "masked", "dtype"),
    [*((target, True, torch.float32) for target in TARGETS.values()), (SM90, False, torch.bfloat16)],
    ids=[*(f"{name}-masked-float32" for name in TARGETS), "sm90-plain-bfloat16"],
)
@pytest.mark.parametrize("name", STREAMS)
def test_statistics(name, target, masked, dtype):
    code = compile_for(target, step_launch(CASES[name], dtype, masked=masked, statistics=True))
    reads, writes = STREAMS[name]
    units = code.wide("ld") - wide_accesses(target, *[dtype] * (1 + reads), tile=code.tile)
    assert units in UNITS.get(target, (0,))
    assert code.wide("st") == wide_accesses(target, *[dtype] * writes, tile=code.tile)
    assert code.spilled <= SPILLED.get((name, target), 0)


def test_statistics_of_adafactor():
    """Of values and directions, as LARS's of gradients: on one target, where a mask takes the most registers."""
    code = compile_for(GFX942, step_launch(CASES["adafactor"], torch.float32, masked=True, statistics=True))
    assert code.wide("ld") - wide_accesses(GFX942, *[torch.float32] * 2, tile=code.tile) in UNITS[GFX942]
    assert code.wide("st") == 0
    assert code.spilled == 0


@pytest.mark.parametrize("name", STREAMS)
def test_no_element_is_computed_in_double(name):
    code = compile_for(SM90, step_launch(CASES[name], torch.float32, statistics=True))
    before, arrived, _ = code.ttir.partition("tt.atomic_rmw")
    assert arrived
    assert re.findall(r"arith\.\w+f [^\n]*xf64", before) == []
    assert "fma." not in code.assembly


@pytest.mark.parametrize("name", STREAMS)
def test_every_warp_has_stored_its_units_before_the_program_arrives(name):
    assert compile_for(SM90, step_launch(CASES[name], statistics=True)).arrivals() == [True]
