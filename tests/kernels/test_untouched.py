"""A variable without a gradient is left alone, bit for bit: None is not zero."""

from __future__ import annotations

import pytest
import torch

from tests.support.memory import SENTINEL
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.stepping import check_step
from tests.support.tolerances import assert_norm, assert_same_bits

SHAPES = [(20,), (2060,), (3, 5), (0,), (16,)]


def some_grads(rig, present):
    return [grad if hit else None for grad, hit in zip(rig.random_grads(), present, strict=True)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("sgd", torch.float32), ("amsgradw", torch.bfloat16), ("user", torch.float32)], ids=str
)
def test_step(name, dtype, device):
    case = CASES[name]
    rig = Rig(SHAPES, dtype, rule=case.rule, device=device)
    for present in ([1, 0, 1, 1, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]):
        check_step(rig, some_grads(rig, present), [case])
    assert rig.steps.tolist() == [2, 2, 3, 2, 1]
    rig.assert_clean()


def test_nan_in_an_untouched_variable_is_not_looked_at(device):
    case = CASES["adamw"]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    rig.spans(rig.values.stream)[1].fill_(torch.nan)
    rig.spans(rig.states[0].stream)[1].fill_(torch.inf)
    check_step(rig, some_grads(rig, [1, 0, 1, 1, 1]), [case], max_norm=1.0)


def test_nothing_touched(device):
    case = CASES["adamw"]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    before = rig.snapshot()
    rig.step([None] * len(SHAPES), [case.group], max_norm=1.0, skip=True)
    for kept, now in zip(before, rig.snapshot(), strict=True):
        assert_same_bits(now, kept)
    assert rig.norm.item() == 0.0


def test_step_from_the_flat_stream(device):
    """`gathered` touches what it is told to, whatever lies in the stream."""
    case = CASES["adamw"]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    for span in rig.spans(rig.grads.stream):
        span.fill_(torch.nan)
    rig.spans(rig.grads.stream)[2].fill_(3.0)
    before = rig.spans(rig.values.stream.clone())
    sources = rig.plan.gathered(rig.grads.stream, [False, False, True, False, False])
    rig.plan.norm_(sources)
    assert_norm(rig.norm, 3.0 * 15**0.5, rig.compute)
    states = [state.stream for state in rig.states]
    options = {"steps": rig.steps, "norm": rig.norm, "max_norm": None, "skip": False, "skipped": rig.skipped}
    rig.plan.step_(sources, case.rule, rig.values.stream, states, [case.group], **options)
    same = [bool(torch.equal(now, kept)) for now, kept in zip(rig.spans(rig.values.stream), before, strict=True)]
    assert same == [True, True, False, True, True]
    assert rig.steps.tolist() == [0, 0, 1, 0, 0]
    rig.assert_clean()


def test_overwriting_zeroes_what_has_no_gradient(device):
    rig = Rig(SHAPES, device=device)
    for span in rig.spans(rig.grads.stream):
        span.fill_(SENTINEL)
    grads = some_grads(rig, [1, 0, 1, 0, 0])
    rig.accumulate(grads)
    for span, grad in zip(rig.spans(rig.grads.stream), grads, strict=True):
        assert_same_bits(span, torch.zeros_like(span) if grad is None else grad.flatten())
    rig.assert_clean()


def test_adding_keeps_what_has_no_gradient(device):
    rig = Rig(SHAPES, device=device)
    first = rig.random_grads()
    first[1].fill_(-0.0)
    rig.accumulate(first)
    rig.accumulate([None, None, first[2], None, None], add=True)
    for i, (span, grad) in enumerate(zip(rig.spans(rig.grads.stream), first, strict=True)):
        assert_same_bits(span, (grad + grad if i == 2 else grad).flatten())
    rig.assert_clean()


@pytest.mark.parametrize("add", [False, True], ids=["overwrite", "add"])
def test_an_infinite_scale_reaches_gradients_only(add, device):
    """0 * inf is NaN: neither padding nor a variable without a gradient may see the product."""
    rig = Rig(SHAPES, device=device)
    rig.accumulate([None, None, torch.ones(3, 5, device=device), None, None], torch.inf, add=add)
    finite = [bool(span.isfinite().all()) for span in rig.spans(rig.grads.stream)]
    assert finite == [True, True, False, True, True]
    rig.assert_clean()
