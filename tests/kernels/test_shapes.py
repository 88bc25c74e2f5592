"""Every kernel over every length that a tile can have, alone and side by side."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.triton.launch import TILE
from tests.support import reference
from tests.support.memory import in_poison
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.stepping import check_step
from tests.support.tolerances import assert_norm, assert_same_bits

B = TILE.block
SHAPES = {
    "scalar": [()],
    "empty": [(0,)],
    "one": [(1,)],
    "31": [(31,)],
    "prime": [(1009,)],
    "block-1": [(B - 1,)],
    "block": [(B,)],
    "block+1": [(B + 1,)],
    "blocks": [(3 * B + 17,)],
    "matrix": [(37, 41)],
    "mixed": [(), (0,), (1,), (31,), (2, 0, 3), (B - 1,), (5, 7), (B + 1,), (16,), (2, 3, 4, 5)],
    "all-empty": [(0,), (4, 0)],
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
each_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
# Lengths decide which lanes work, dtypes what a lane loads and stores: every dtype meets the lengths side by side.
PAIRS = {name: (shapes, torch.float32) for name, shapes in SHAPES.items()}
PAIRS |= {f"mixed-{dtype}": (SHAPES["mixed"], dtype) for dtype in DTYPES[1:]}
each_pair = pytest.mark.parametrize(("shapes", "dtype"), PAIRS.values(), ids=PAIRS)


def rig_of(shapes, dtype, device):
    return Rig(shapes, dtype, rule=CASES["adamw"].rule, device=device)


@each_pair
def test_step(shapes, dtype, device):
    rig = rig_of(shapes, dtype, device)
    check_step(rig, [in_poison(grad) for grad in rig.random_grads()], [CASES["adamw"]])
    rig.assert_clean()
    assert rig.steps.tolist() == [1] * len(shapes)


@each_pair
def test_accumulate(shapes, dtype, device):
    rig = rig_of(shapes, dtype, device)
    for span in rig.spans(rig.grads.stream):
        span.fill_(torch.nan)  # an overwrite reads nothing
    first, second = [[in_poison(grad) for grad in rig.random_grads()] for _ in range(2)]
    rig.accumulate(first)
    rig.accumulate(second, 0.5, add=True)
    for span, a, b in zip(rig.spans(rig.grads.stream), first, second, strict=True):
        assert_same_bits(span, (a.to(rig.compute) + b.to(rig.compute) * 0.5).flatten())
    assert_norm(rig.norm, reference.norm_of(rig.spans(rig.grads.stream)), rig.compute)
    rig.assert_clean()


@each_pair
def test_norm(shapes, dtype, device):
    rig = rig_of(shapes, dtype, device)
    grads = [in_poison(grad) for grad in rig.random_grads()]
    before = rig.snapshot()
    rig.plan.norm_(rig.plan.scattered(grads))
    assert_norm(rig.norm, reference.norm_of(grads), dtype)
    for kept, now in zip(before, rig.snapshot(), strict=True):
        assert_same_bits(now, kept)


@pytest.mark.parametrize("order", [1.0, 2.0])
@each_shape
def test_variable_norms(shapes, order, device):
    rig = rig_of(shapes, torch.float32, device)
    grads = [in_poison(grad) for grad in rig.random_grads()]
    norms = rig.plan.variable_norms(rig.values.stream, rig.plan.scattered(grads), order)
    truth = [
        [reference.norm_of([x], order) for x in pair] for pair in zip(rig.spans(rig.values.stream), grads, strict=True)
    ]
    assert_norm(norms, torch.tensor(truth, dtype=torch.float64), torch.float32)
