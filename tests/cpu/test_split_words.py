"""Split values of every float32 there is, by the words of the compiled kernel: some seconds of one core."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from flatvars.kernels.cpu.split import joined, lower_of, upper_of


@numba.njit(error_model="numpy")
def looked_at(words):
    """How many do not come back to the bit, or, of NaN, as NaN that shows; and how many torch would show otherwise."""
    lost = others = np.uint32(0)  # 32 bits and no branch: a loop of vectors
    floats = words.view(np.float32)
    for i in range(len(words)):
        x, word = floats[i], words[i]
        upper = np.uint32(upper_of(x))
        back = joined(upper_of(x), lower_of(x))
        is_nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        odd = word >> np.uint32(16) & np.uint32(1)
        nearest = np.uint32(word + np.uint32(0x7FFF) + odd) >> np.uint32(16)  # of NaN alone it may overflow
        same = np.float32(back).view(np.uint32) == word
        shown = (back != back) & ((upper & np.uint32(0x7FFF)) > np.uint32(0x7F80))
        lost += np.uint32(not (shown if is_nan else same))
        others += np.uint32((not is_nan) & (upper != nearest))
    return lost, others


@pytest.mark.slow
def test_all_patterns_come_back() -> None:
    """And what is shown is torch's rounding, but that ties go away from zero: 32,640 of them are between."""
    words, differ = np.arange(1 << 24, dtype=np.uint32), 0
    for _ in range(0, 1 << 32, len(words)):
        lost, others = looked_at(words)
        assert lost == 0
        differ += int(others)
        words += np.uint32(len(words))
    assert words[0] == 0  # all have been there
    assert differ == 32_640
