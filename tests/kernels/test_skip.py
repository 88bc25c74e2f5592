"""skip: a norm that is not finite changes nothing but the counter."""

from __future__ import annotations

import math

import pytest
import torch

from flatvars.kernels.rules import SGD
from tests.support.rig import Rig, lay_out, plan_of
from tests.support.rules import CASES, sgd_group
from tests.support.stepping import check_step
from tests.support.tolerances import assert_same_bits

SHAPES = [(20,), (2060,), (3, 5)]


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["momentum", "adamw", "user"])
def test_everything_keeps_its_bits(name, bad, max_norm, device):
    case = CASES[name]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    check_step(rig, rig.random_grads(), [case])
    grads = rig.random_grads()
    grads[1][2059] = bad
    before = rig.snapshot()
    rig.step(grads, [case.group], max_norm=max_norm, skip=True)
    for kept, now in zip(before[:-1], rig.snapshot()[:-1], strict=True):
        assert_same_bits(now, kept)
    assert rig.skipped.item() == 1


def test_steps_before_and_after_count_only_themselves(device):
    case = CASES["adamw"]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    for bad in (False, True, True, False, True):
        grads = rig.random_grads()
        if bad:
            grads[0][0] = math.nan
            rig.step(grads, [case.group], skip=True)
        else:
            check_step(rig, grads, [case], skip=True)
    assert rig.skipped.item() == 3
    assert rig.steps.tolist() == [2, 2, 2]


def test_a_finite_norm_is_not_skipped(device):
    case = CASES["adamw"]
    rig = Rig(SHAPES, rule=case.rule, device=device)
    check_step(rig, [grad * 1e15 for grad in rig.random_grads()], [case], max_norm=1.0, skip=True)
    assert rig.skipped.item() == 0


def test_regions_count_a_skip_once(backend, device):
    """Only the plan in slot 0 counts: all of a step's plans see the same norm."""
    norm, sums = torch.tensor(math.nan, device=device), torch.zeros(2, dtype=torch.float64, device=device)
    skipped = torch.zeros((), dtype=torch.int32, device=device)
    for slot in range(2):
        segments, numel = lay_out([(5000,), (20,)])
        plan = plan_of(backend, segments, device, None, norm, sums, slot)
        grads = [torch.ones(shape, device=device) for shape in segments.shapes]
        values = torch.ones(numel, device=device)
        options = {"norm": norm, "max_norm": None, "skip": True, "skipped": skipped}
        steps = torch.zeros(2, dtype=torch.float64, device=device)
        plan.step_(plan.scattered(grads), SGD, values, [], [sgd_group()], steps=steps, **options)
        assert values.tolist() == [1.0] * numel
    assert skipped.item() == 1
