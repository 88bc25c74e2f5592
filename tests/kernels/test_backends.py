"""Both backends, driven by the same random program: same norms, streams, states and counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatvars.backend import use_backend
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.stores import set_grads, store_of
from tests.support.tolerances import TOLERANCES, assert_close, assert_norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.lists(
    st.sampled_from([(), (0,), (1,), (17,), (3, 5), (128,), (2049,)]),
    min_size=1,
    max_size=4,
)
# torch's fused operators do not touch the maximum where amsgrad is off; the Triton rule does, and nobody reads it.
NAMES = sorted(CASES.keys() - {"amsgrad-off"})
STEP = st.tuples(st.just("step"), st.sampled_from([None, 0.5, 1e9]), st.booleans())
ACCUMULATE = st.tuples(st.just("accumulate"), st.sampled_from([1.0, 0.25, -3.0]), st.booleans())
PROGRAM = st.lists(st.one_of(STEP, ACCUMULATE), min_size=1, max_size=3)


def both(shapes, dtype, rule):
    rigs = [Rig(shapes, dtype, rule=rule, backend=backend) for backend in ("triton", "torch")]
    copy_over(*rigs)
    return rigs


def copy_over(source, target):
    """The other backend goes on from the same bits, so that roundings do not add up to differences."""
    for a, b in zip(source.guarded(), target.guarded(), strict=True):
        b.storage.copy_(a.storage)


@pytest.fixture(autouse=True)
def _host(device):
    if device.type != "cpu":
        pytest.skip("the torch backend works on host memory")


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    shapes=SHAPES,
    dtype=st.sampled_from(DTYPES),
    source=st.sampled_from(DTYPES),
    name=st.sampled_from(NAMES),
    program=PROGRAM,
    seed=st.integers(0, 2**16),
)
def test_same_program(shapes, dtype, source, name, program, seed):
    generator = torch.manual_seed(seed)
    case = CASES[name]
    triton, eager = both(shapes, dtype, case.rule)
    for operation, number, flag in program:
        copy_over(triton, eager)
        present = torch.rand(len(shapes), generator=generator) < 0.75
        grads = [grad if hit else None for grad, hit in zip(triton.random_grads(source), present, strict=True)]
        for rig in (triton, eager):
            if operation == "step":
                rig.step(grads, [case.group], max_norm=number, skip=flag)
            else:
                rig.accumulate(grads, number, add=flag)
        compare(triton, eager)


def compare(triton, eager):
    for actual, expected in zip(triton.guarded(), eager.guarded(), strict=True):
        assert_close(actual.stream, expected.stream)
    assert_norm(triton.norm, eager.norm, triton.compute, relative=2e-6)
    assert triton.steps.tolist() == eager.steps.tolist()
    assert triton.skipped.item() == eager.skipped.item()
    triton.assert_clean()
    eager.assert_clean()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("skip", [True, False])
def test_same_answer_to_a_bad_gradient(skip, bad):
    case = CASES["adamw"]
    triton, eager = both([(20,), (30,)], torch.float32, case.rule)
    grads = triton.random_grads()
    grads[1][7] = bad
    for rig in (triton, eager):
        rig.step(grads, [case.group], max_norm=1.0, skip=skip)
    compare(triton, eager)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_norms(dtype, order):
    stores = []
    for backend in ("triton", "torch"):
        torch.manual_seed(1)
        with use_backend(backend):
            store = store_of(dtypes=(dtype,))
            set_grads(store)
            stores.append((store.norms(order), store.grad_norm(order)))
    (triton, total), (eager, expected) = stores
    relative = max(TOLERANCES[dtype].norm, 2e-5 if order in (3.0, 0.5) else 1e-6)
    assert_norm(total, expected, torch.float32, relative)
    for name, pair in triton.items():
        for actual, truth in zip(pair, eager[name], strict=True):
            assert_norm(actual, truth, torch.float32, relative)


@pytest.mark.parametrize("order", [0.0, -1.0, -math.inf, math.nan])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_an_order_that_is_no_norm_is_refused(backend, order):
    with use_backend(backend):
        store = store_of()
        set_grads(store)
        with pytest.raises(ValueError, match="norm"):
            store.norms(order)
