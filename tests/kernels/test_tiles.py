"""The tile table: every element in exactly one tile, starts that allow full-width access."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatvars.kernels.segments import Segments, tile_table
from tests.support.rig import lay_out

LENGTHS = st.lists(st.integers(0, 200), min_size=1, max_size=12)
BLOCKS = st.sampled_from([16, 32, 64])


@pytest.fixture(autouse=True)
def backend():
    """Nothing is launched here."""
    return "triton"


@given(LENGTHS, BLOCKS)
def test_every_element_lies_in_one_tile(lengths, block):
    segments, numel = lay_out([(n,) for n in lengths])
    seen = np.zeros(numel, dtype=int)
    for start, local, length, variable, _ in tile_table(segments, block):
        assert start - local == segments.starts[variable]
        seen[start : start + length] += 1
    expected = np.zeros(numel, dtype=int)
    for start, length in zip(segments.starts, lengths, strict=True):
        expected[start : start + length] = 1
    assert (seen == expected).all()


@given(LENGTHS, BLOCKS)
def test_tiles_are_aligned_and_fit_a_block(lengths, block):
    segments, _ = lay_out([(n,) for n in lengths])
    start, local, length, _, _ = tile_table(segments, block).T
    assert (start % Segments.LANES == 0).all()
    assert (local % Segments.LANES == 0).all()
    assert (length <= block).all()
    assert (length >= 0).all()


@given(LENGTHS, BLOCKS)
def test_each_variable_has_its_tiles_together_and_at_least_one(lengths, block):
    segments, _ = lay_out([(n,) for n in lengths], groups=[i % 3 for i in range(len(lengths))])
    rows = tile_table(segments, block)
    variables = rows[:, 3]
    assert (np.diff(variables) >= 0).all()
    assert sorted(set(variables.tolist())) == list(range(len(lengths)))
    assert (rows[:, 4] == variables % 3).all()


def test_offsets_beyond_32_bits_are_exact():
    large = 3 * 2**30
    segments, _ = lay_out([(large,), (large,), (5,)])
    rows = tile_table(segments, 2**20)
    assert rows.dtype == np.int64
    assert rows[-1].tolist() == [2 * large, 0, 5, 2, 0]
    assert rows[:, 2].sum() == 2 * large + 5
