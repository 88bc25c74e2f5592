"""The global L2 norm: over programs, launches, regions; NaN and infinity; the same bits every time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flatvars.kernels.launches import Tables
from flatvars.kernels.triton.launch import Launch
from flatvars.kernels.triton.launches import TritonLaunches
from tests.support import reference
from tests.support.rig import Rig, lay_out, plan_of
from tests.support.tolerances import assert_norm, assert_same_bits

SHAPES = [(5000,), (31,), (2048,), (7, 9)]


def norm_of(rig, grads):
    rig.plan.norm_(rig.plan.scattered(grads))
    return rig.norm.clone()


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 5, 9])
def test_fewer_and_more_tiles_than_programs(tiles, device):
    rig = Rig([(2048,)] * tiles, device=device)
    grads = rig.random_grads()
    assert_norm(norm_of(rig, grads), reference.norm_of(grads), torch.float32)


def test_a_norm_of_many_equal_numbers_loses_nothing(device):
    """Summed one after the other, float32 squares of 0.1 would drift by 1e-4 over 40,000 elements."""
    rig = Rig([(40_000,)], device=device)
    grads = [torch.full((40_000,), 0.1, device=device)]
    assert_norm(norm_of(rig, grads), reference.norm_of(grads), torch.float32)


def test_each_launch_reads_the_table_that_it_is_given(device):
    """Shards whose units a border cuts have tables of their own in every step."""
    rig, tables = Rig(SHAPES, device=device), []
    for _ in range(2):
        grads = rig.random_grads()
        sources = rig.plan.scattered(grads)
        tables.append((grads, sources.table.clone()))
        rig.plan.norm_(replace(sources, table=tables[-1][1]))
        assert_norm(rig.norm, reference.norm_of(grads), torch.float32)


def test_launches_leave_the_counter_as_they_found_it(device):
    rig = Rig(SHAPES, device=device)
    for _ in range(4):
        grads = rig.random_grads()
        assert_norm(norm_of(rig, grads), reference.norm_of(grads), torch.float32)


def test_the_same_bits_every_time(device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    first = norm_of(rig, grads)
    for _ in range(3):
        assert_same_bits(norm_of(rig, grads), first)


@pytest.mark.parametrize(("programs", "block"), [(1, 2048), (2, 2048), (7, 2048), (3, 256), (40, 128), (4, 4096)])
def test_the_same_bits_for_any_programs_and_block(programs, block, device):
    """A sum is cut by the position in the variable, not by the launch."""
    torch.manual_seed(0)
    # One length of more slots than a launch adds in one turn; each of its 69 tiles takes the interpreter its time.
    shapes = [(140_001,), (31,), (2048,), (7, 9), (0,), (4099,)] if programs == 7 else SHAPES
    rig, other = (Rig(shapes, device=device, fill=False) for _ in range(2))
    grads = [grad * 10.0**k for k, grad in enumerate(rig.random_grads())]
    launches = TritonLaunches(Tables(other.segments, device, block, None), Launch(block, 4, 4))
    launches.norm_programs = launches.programs = min(programs, len(launches.tables.tiles))
    other.plan.launches = launches
    assert_same_bits(norm_of(other, grads), norm_of(rig, grads))
    rig.accumulate(grads)
    assert_same_bits(rig.norm, norm_of(other, grads))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [(0, 0), (0, 4999), (1, 30), (3, 62)], ids=str)
def test_what_is_not_finite_is_never_missed(where, bad, device):
    rig = Rig(SHAPES, device=device)
    grads = [grad.flatten() for grad in rig.random_grads()]
    grads[where[0]][where[1]] = bad
    norm = norm_of(rig, [g.reshape(s) for g, s in zip(grads, rig.segments.shapes, strict=True)]).item()
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf


def test_nan_wins_over_infinity(device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    grads[0][3], grads[2][5] = math.inf, math.nan
    assert math.isnan(norm_of(rig, grads).item())


def test_small_squares_do_not_underflow_in_float16(device):
    """1e-4 squared is 0 in float16: squares are taken in float32."""
    rig = Rig([(100,)], torch.float16, device=device)
    grads = [torch.full((100,), 1e-4, dtype=torch.float16, device=device)]
    assert_norm(norm_of(rig, grads), reference.norm_of(grads), torch.float16)


REGIONS = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtypes", [REGIONS, REGIONS[1::-1]], ids=lambda d: f"{len(d)}-{d[0]}")
@pytest.mark.parametrize("store", [False, True], ids=["norm", "accumulate"])
def test_regions_share_one_norm(store, dtypes, backend, device):
    """Launches of one norm run in slot order, and the last leaves the norm of all."""
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    norm, sums = (
        torch.zeros((), dtype=wide, device=device),
        torch.zeros(len(dtypes), dtype=torch.float64, device=device),
    )
    plans = []
    for slot, dtype in enumerate(dtypes):
        segments, numel = lay_out([(2100,), (30,)], dtype)
        plans.append((plan_of(backend, segments, device, None, norm, sums, slot), numel, dtype))
    for _ in range(2):
        everything = []
        for plan, numel, dtype in plans:
            grads = [torch.randn(shape, device=device).to(dtype) for shape in plan.segments.shapes]
            everything += grads
            if store:
                stream = torch.zeros(numel, dtype=plan.segments.compute_dtype, device=device)
                plan.accumulate_(grads, stream, 1.0, False)
            else:
                plan.norm_(plan.scattered(grads))
        assert_norm(norm, reference.norm_of(everything), torch.float32)


def test_float64_sums_in_float64(device):
    rig = Rig(SHAPES, torch.float64, device=device)
    grads = rig.random_grads()
    assert_norm(norm_of(rig, grads), reference.norm_of(grads), torch.float64)
