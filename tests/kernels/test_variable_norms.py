"""Norms of every variable, of its value and its gradient, for any order."""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import reference
from tests.support.memory import in_poison
from tests.support.rig import Rig
from tests.support.tolerances import POWER_NORM, assert_norm, assert_same_bits

# The interpreter takes the maximum one element after the other, a quarter of a second a tile.
FEW = [(20,), (2050,)]
SHAPES = [(20,), (0,), (), (4100,), (3, 5), (2048,)]
ORDERS = [1.0, 2.0, 3.0, 0.5]


def truth_of(tensors, order):
    return torch.tensor([reference.norm_of([t], order) for t in tensors], dtype=torch.float64)


def precision(order):
    return None if order in (1.0, 2.0) else POWER_NORM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_values_and_gradients(order, dtype, device):
    rig = Rig(SHAPES, dtype, device=device)
    grads = [in_poison(grad) for grad in rig.random_grads()]
    norms = rig.plan.variable_norms(rig.values.stream, rig.plan.scattered(grads), order)
    relative = 1e-11 if dtype == torch.float64 else precision(order)
    assert norms.dtype == rig.compute
    assert_norm(norms[:, 0], truth_of(rig.spans(rig.values.stream), order), dtype, relative)
    assert_norm(norms[:, 1], truth_of(grads, order), dtype, relative)


def test_only_one_of_both(device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    values = rig.plan.variable_norms(rig.values.stream, None, 2.0)
    gradients = rig.plan.variable_norms(None, rig.plan.scattered(grads), 2.0)
    assert_norm(values[:, 0], truth_of(rig.spans(rig.values.stream), 2.0), torch.float32)
    assert_norm(gradients[:, 1], truth_of(grads, 2.0), torch.float32)
    assert values[:, 1].count_nonzero() == 0
    assert gradients[:, 0].count_nonzero() == 0


def test_no_gradient_has_norm_zero(device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    grads[0] = grads[3] = None
    norms = rig.plan.variable_norms(None, rig.plan.scattered(grads), 2.0)[:, 1]
    assert norms[0] == 0
    assert norms[3] == 0
    assert norms[2] != 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_not_finite_shows_in_its_own_variable_only(bad, order, device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    grads[3][2047], grads[3][2050] = bad, -1.0
    norms = rig.plan.variable_norms(None, rig.plan.scattered(grads), order)[:, 1].tolist()
    assert math.isnan(norms[3]) if math.isnan(bad) else norms[3] == math.inf
    assert [i for i, norm in enumerate(norms) if not math.isfinite(norm)] == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maximum(dtype, device):
    rig = Rig(FEW, dtype, device=device)
    grads = rig.random_grads()
    norms = rig.plan.variable_norms(None, rig.plan.scattered(grads), math.inf)
    assert_norm(norms[:, 1], truth_of(grads, math.inf), dtype, relative=0.0)


@pytest.mark.parametrize(("bad", "first"), [(math.nan, 0), (math.nan, 2049), (-math.inf, 1)])
def test_nan_wins_over_infinity_in_the_maximum(bad, first, device):
    rig = Rig(FEW, device=device)
    grads = rig.random_grads()
    grads[1][first], grads[1][17], grads[1][2048] = bad, math.inf, -math.inf
    norms = rig.plan.variable_norms(None, rig.plan.scattered(grads), math.inf)[:, 1].tolist()
    assert math.isnan(norms[1]) if math.isnan(bad) else norms[1] == math.inf
    assert math.isfinite(norms[0])


def test_the_same_bits_every_time(device):
    rig = Rig(SHAPES, device=device)
    grads = rig.random_grads()
    sources = rig.plan.scattered(grads)
    first = rig.plan.variable_norms(rig.values.stream, sources, 2.0)
    for _ in range(2):
        assert_same_bits(rig.plan.variable_norms(rig.values.stream, sources, 2.0), first)
    rig.assert_clean()
