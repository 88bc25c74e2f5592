"""Step counts: one per variable, kept on the device, loaded and read back."""

from __future__ import annotations

import pytest
import torch

from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.stepping import check_step

# Several tiles each, one tile, no element.
SHAPES = [(4100,), (20,), (0,), (2048,), (2049,)]
CASE = CASES["adamw"]


def test_a_variable_of_many_tiles_has_one_count(device):
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    for _ in range(3):
        check_step(rig, rig.random_grads(), [CASE])
    assert rig.steps.tolist() == [3] * len(SHAPES)


@pytest.mark.parametrize("counts", [[0, 0, 0, 0, 0], [7, 1, 3, 0, 100_000], [16_777_215, 5, 2, 1, 9]], ids=str)
def test_loaded_counts_decide_bias_correction(counts, device):
    """float32 counts exactly up to 2^24."""
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    rig.steps.copy_(torch.tensor(counts, dtype=torch.int32))
    assert rig.steps.tolist() == counts
    check_step(rig, rig.random_grads(), [CASE])
    assert rig.steps.tolist() == [count + 1 for count in counts]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32], ids=str)
def test_counts_load_from_any_number_dtype(dtype, device):
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    rig.steps.copy_(torch.tensor([4, 3, 2, 1, 0], dtype=dtype))
    assert rig.steps.tolist() == [4, 3, 2, 1, 0]


def test_a_count_is_live(device):
    """A view of one count follows every step, and what is written into it is the count."""
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    count = rig.steps[1]
    rig.step(rig.random_grads(), [CASE.group])
    assert count.item() == 1
    count.zero_()
    check_step(rig, rig.random_grads(), [CASE])
    assert rig.steps.tolist() == [2, 1, 2, 2, 2]
