"""Smaller blocks for smaller variables: the same bits, whatever the block."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from flatvars.backend import use_backend
from flatvars.kernels.triton import launch, launches
from flatvars.kernels.triton.launch import TILE, TILES, tile_for
from tests.support.rig import Rig, lay_out
from tests.support.rules import CASES
from tests.support.tolerances import assert_same_bits


@pytest.fixture
def backend():
    """The CPU has one block."""
    with use_backend("triton"):
        yield "triton"


SHAPES = [(20,), (2060,), (7, 5), (0,), (513,)]
CASE = CASES["adamw"]


def run(tile, device):
    """Two clipped steps, an accumulation and norms of variables, all in one block."""
    torch.manual_seed(3)
    with patch.object(launches, "tile_for", return_value=tile):
        masks = [None, torch.arange(2060) % 3 != 0, None, None, None]
        rig = Rig(SHAPES, rule=CASE.rule, masks=[m if m is None else m.to(device) for m in masks], device=device)
    assert rig.plan.launches.tables.block == tile.block
    for _ in range(2):
        rig.step(rig.random_grads(), [CASE.group], max_norm=0.5)
    norm = rig.norm.clone()
    rig.accumulate(rig.random_grads(), 0.5)
    rig.assert_clean()
    return [norm, rig.norm, *rig.snapshot()]


@pytest.mark.parametrize("tile", TILES[1:], ids=lambda tile: str(tile.block))
def test_the_block_shows_in_no_bit(tile, device):
    for actual, expected in zip(run(tile, device), run(TILE, device), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    ("numels", "block"),
    [
        ([16_777_216], 2048),
        ([768] * 50 + [2_359_296] * 12, 2048),
        ([1024] * 1000, 1024),
        ([500] * 100, 512),
        ([256] * 10_000, 256),
        ([32] * 1000, 256),
        ([0, 0], 256),
    ],
)
def test_sizes_decide_the_block(numels, block):
    segments, _ = lay_out([(numel,) for numel in numels])
    with patch.object(launch, "INTERPRETED", False):
        assert tile_for(segments).block == block
