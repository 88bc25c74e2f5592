"""Gradients wherever and however they lie: dtype, alignment, memory order, sparse; nothing of their neighbors."""

from __future__ import annotations

import pytest
import torch

from flatvars.errors import GradientError
from tests.support.memory import expanded, in_poison
from tests.support.rig import Rig, memory_order
from tests.support.rules import CASES
from tests.support.stepping import check_step
from tests.support.tolerances import assert_close, assert_norm, assert_same_bits

# Ragged and whole multiples of 16, within and past one block.
SHAPES = [(31,), (64,), (2050,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
CASE = CASES["adamw"]


def check_everywhere(rig, grads):
    """Step, norm, accumulate and per-variable norms of these gradients."""
    truths = [memory_order(grad, rig.segments, i) for i, grad in enumerate(grads)]
    check_step(rig, grads, [CASE], max_norm=1.0)
    norms = rig.plan.variable_norms(None, rig.plan.scattered(grads), 2.0)
    assert_norm(norms[:, 1], torch.stack([truth.norm() for truth in truths]), rig.compute)
    rig.accumulate(grads, 2.0)
    for span, truth in zip(rig.spans(rig.grads.stream), truths, strict=True):
        assert_close(span, 2.0 * truth)
    rig.assert_clean()


@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("values", DTYPES, ids=str)
def test_dtype(values, source, device):
    rig = Rig(SHAPES, values, rule=CASE.rule, device=device)
    check_everywhere(rig, [in_poison(grad) for grad in rig.random_grads(source)])


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("values", [torch.float32, torch.float64], ids=str)
def test_dtypes_mixed_in_one_launch(values, shift, device):
    rig = Rig([(40,), (31,), (64,), (2050,)], values, rule=CASE.rule, device=device)
    grads = [in_poison(g.to(dtype), shift) for g, dtype in zip(rig.random_grads(), DTYPES, strict=True)]
    check_everywhere(rig, grads)


@pytest.mark.parametrize(
    ("source", "shift"), [*((dtype, 1) for dtype in DTYPES), (torch.bfloat16, 3), (torch.bfloat16, 8)]
)
def test_misaligned(source, shift, device):
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    check_everywhere(rig, [in_poison(grad, shift) for grad in rig.random_grads(source)])


def test_one_misaligned_among_aligned(device):
    rig = Rig(SHAPES, rule=CASE.rule, device=device)
    check_everywhere(rig, [in_poison(grad, shift) for grad, shift in zip(rig.random_grads(), (0, 1, 0), strict=True)])


ORDERS = {
    "transposed": ((6, 7), (), (1, 6)),
    "channels-last": ((2, 3, 4, 5), (), (60, 1, 15, 3)),
    "sliced": ((6, 7), (), (20, 2)),
    "row-major-for-transposed": ((6, 7), (1, 6), (7, 1)),
    "transposed-both": ((6, 7), (1, 6), (1, 6)),
    "channels-last-both": ((2, 3, 4, 5), (60, 1, 15, 3), (60, 1, 15, 3)),
    "long-axis-of-one": ((1, 5, 1), (), (99, 1, 3)),
    "expanded": ((6, 7), (), (0, 0)),
    "expanded-rows": ((6, 7), (), (0, 1)),
}


@pytest.mark.parametrize(("shape", "stride", "grad_stride"), ORDERS.values(), ids=ORDERS)
def test_memory_order(shape, stride, grad_stride, device):
    rig = Rig([(3,), shape], strides=[(), stride], rule=CASE.rule, device=device)
    whole = torch.randn(shape, device=device)
    check_everywhere(rig, [torch.randn(3, device=device), in_poison(whole, 1, grad_stride)])


def test_expanded_scalar(device):
    rig = Rig([(5, 5), ()], rule=CASE.rule, device=device)
    check_everywhere(rig, [expanded((5, 5)).to(device), torch.randn((), device=device)])


@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse(coalesced, device):
    rig = Rig([(3,), (6, 7)], rule=CASE.rule, device=device)
    rows = torch.tensor([[1, 4, 1]], device=device)
    grad = torch.sparse_coo_tensor(rows, torch.randn(3, 7, device=device), (6, 7), check_invariants=True)
    grad = grad.coalesce() if coalesced else grad
    check_everywhere(rig, [torch.randn(3, device=device), grad])


def test_negated_view(device):
    """torch marks such a view instead of negating its memory."""
    rig = Rig([(20,)], rule=CASE.rule, device=device)
    check_everywhere(rig, [torch._neg_view(torch.randn(20, device=device))])


WRONG = {
    "shape": lambda d: torch.ones(4, 3, device=d),
    "shorter-same-stride": lambda d: torch.ones(2, 4, device=d),
    "longer-same-stride": lambda d: torch.ones(5, 4, device=d),
    "rank": lambda d: torch.ones(12, device=d),
    "integer": lambda d: torch.ones(3, 4, dtype=torch.int32, device=d),
    "complex": lambda d: torch.ones(3, 4, dtype=torch.complex64, device=d),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_refused_by_name(wrong, device):
    rig = Rig([(2,), (3, 4)], rule=CASE.rule, device=device)
    grads = [torch.ones(2, device=device), wrong(device)]
    before = rig.snapshot()
    with pytest.raises(GradientError, match="'v1'"):
        rig.step(grads, [CASE.group])
    with pytest.raises(GradientError, match="'v1'"):
        rig.accumulate(grads)
    for kept, now in zip(before, rig.snapshot(), strict=True):
        assert_same_bits(now, kept)


def test_empty_gradients_have_no_address(device):
    rig = Rig([(0,), (4,)], rule=CASE.rule, device=device)
    check_step(rig, [torch.empty(0, device=device), None], [CASE])
    assert rig.steps.tolist() == [1, 0]
