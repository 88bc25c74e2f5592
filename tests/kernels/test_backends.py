"""Both compilers, driven by the same random program: the same bits in streams, states, counts and norms."""

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
from tests.support.tolerances import TOLERANCES, assert_norm, assert_same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.lists(
    st.sampled_from([(), (0,), (1,), (17,), (3, 5), (128,), (2049,)]),
    min_size=1,
    max_size=4,
)
NAMES = sorted(CASES)
STEP = st.tuples(st.just("step"), st.sampled_from([None, 0.5, 1e9]), st.booleans())
ACCUMULATE = st.tuples(st.just("accumulate"), st.sampled_from([1.0, 0.25, -3.0]), st.booleans())
PROGRAM = st.lists(st.one_of(STEP, ACCUMULATE), min_size=1, max_size=3)


def both(shapes, dtype, rule, masks=None, state_dtype=None):
    options = {"rule": rule, "masks": masks, "state_dtype": state_dtype}
    rigs = [Rig(shapes, dtype, backend=backend, **options) for backend in ("triton", "cpu")]
    copy_over(*rigs)
    return rigs


def copy_over(source, target):
    """The other backend goes on from the same bits, so that roundings do not add up to differences."""
    for a, b in zip(source.guarded(), target.guarded(), strict=True):
        b.storage.copy_(a.storage)


@pytest.fixture(autouse=True)
def backend(device):
    """Each test is about both."""
    if device.type != "cpu":
        pytest.skip("the cpu backend works on host memory")


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    shapes=SHAPES,
    dtype=st.sampled_from(DTYPES),
    source=st.sampled_from(DTYPES),
    name=st.sampled_from(NAMES),
    program=PROGRAM,
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_same_program(shapes, dtype, source, name, program, masked, seed):
    generator = torch.manual_seed(seed)
    case = CASES[name]
    masks = [torch.rand(shape, generator=generator) < 0.7 for shape in shapes] if masked else None
    triton, cpu = both(shapes, dtype, case.rule, masks)
    for operation, number, flag in program:
        copy_over(triton, cpu)
        present = torch.rand(len(shapes), generator=generator) < 0.75
        grads = [grad if hit else None for grad, hit in zip(triton.random_grads(source), present, strict=True)]
        for rig in (triton, cpu):
            if operation == "step":
                rig.step(grads, [case.group], max_norm=number, skip=flag)
            else:
                rig.accumulate(grads, number, add=flag)
        assert_same_everywhere(triton, cpu)


def assert_same_everywhere(triton, cpu):
    for actual, expected in zip(cpu.guarded(), triton.guarded(), strict=True):
        assert_same_bits(actual.storage, expected.storage)
    assert_norm(cpu.norm, triton.norm, triton.compute, relative=0.0)
    assert cpu.steps.tolist() == triton.steps.tolist()
    assert cpu.skipped.item() == triton.skipped.item()
    triton.assert_clean()
    cpu.assert_clean()


@pytest.mark.parametrize("state_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_in_every_pair_of_dtypes(dtype, state_dtype):
    case = CASES["adamw"]
    triton, cpu = both([(33,), (150,)], dtype, case.rule, None, state_dtype)
    for source in dict.fromkeys((torch.float32, dtype, state_dtype)):
        grads = triton.random_grads(source)
        for rig in (triton, cpu):
            rig.step(grads, [case.group], grad_scale=torch.tensor(3.0))
        assert_same_everywhere(triton, cpu)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_of_every_rule(name):
    """Of the first step, the second and the thousandth, each from the same bits."""
    case = CASES[name]
    triton, cpu = both([(700,)], torch.float32, case.rule)
    for step in (1, 2, 1000):
        grads = triton.random_grads()
        for rig in (triton, cpu):
            rig.steps.fill_(step - 1.0)
            rig.step(grads, [case.group])
        assert_same_everywhere(triton, cpu)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("skip", [True, False])
def test_same_answer_to_a_bad_gradient(skip, bad):
    case = CASES["adamw"]
    triton, cpu = both([(20,), (30,)], torch.float32, case.rule)
    grads = triton.random_grads()
    grads[1][7] = bad
    for rig in (triton, cpu):
        rig.step(grads, [case.group], max_norm=1.0, skip=skip)
    assert_same_everywhere(triton, cpu)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_norms(dtype, order):
    stores = []
    for backend in ("triton", "cpu"):
        torch.manual_seed(1)
        with use_backend(backend):
            store = store_of(dtypes=(dtype,))
            set_grads(store)
            stores.append((store.norms(order), store.grad_norm(order)))
    (triton, total), (cpu, expected) = stores
    relative = max(TOLERANCES[dtype].norm, 2e-5 if order in (3.0, 0.5) else 1e-6)
    assert_norm(total, expected, torch.float32, relative)
    for name, pair in triton.items():
        for actual, truth in zip(pair, cpu[name], strict=True):
            assert_norm(actual, truth, torch.float32, relative)


@pytest.mark.parametrize("order", [0.0, -1.0, -math.inf, math.nan])
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_an_order_that_is_no_norm_is_refused(backend, order):
    with use_backend(backend):
        store = store_of()
        set_grads(store)
        with pytest.raises(ValueError, match="norm"):
            store.norms(order)
