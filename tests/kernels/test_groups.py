"""Param groups: every variable steps by its own group's numbers, and changed numbers reach the device."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flatvars.kernels.hyper import HyperTable
from flatvars.kernels.rules import ADAMW, SGD
from flatvars.kernels.rules.adam import adam_numbers
from tests.support import reference
from tests.support.rig import Rig
from tests.support.rules import CASES, Case, adam_group, sgd_group
from tests.support.stepping import check_step

NUMBERS = range(24)


def adamw_case(**changed):
    return Case(ADAMW, adam_group(**changed), reference.adamw)


def sgd_case(**changed):
    return Case(SGD, sgd_group(**changed), reference.sgd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_groups(dtype, device):
    cases = [
        adamw_case(lr=0.001 * (i + 1), weight_decay=0.01 * i, betas=(0.5 + 0.02 * i, 0.9), eps=10.0 ** -(i % 9 + 1))
        for i in NUMBERS
    ]
    groups = [(7 * i) % len(NUMBERS) for i in NUMBERS]  # every group once, out of order
    rig = Rig([(5 + i,) for i in NUMBERS], dtype, rule=ADAMW, groups=groups, device=device)
    for _ in range(2):
        check_step(rig, rig.random_grads(), cases, max_norm=1.0)
    rig.assert_clean()


def test_flags_differ_between_groups(device):
    cases = [
        Case(CASES["momentum"].rule, sgd_group(momentum=0.9, nesterov=True), reference.sgd),
        Case(CASES["momentum"].rule, sgd_group(dampening=0.5), reference.sgd),
        Case(CASES["momentum"].rule, sgd_group(momentum=0.5, dampening=0.2, maximize=True), reference.sgd),
    ]
    rig = Rig([(20,), (2050,), (3, 3)], rule=cases[0].rule, groups=[2, 0, 1], device=device)
    for _ in range(3):
        check_step(rig, rig.random_grads(), cases)


def test_amsgrad_in_one_of_two_groups(device):
    cases = [Case(CASES["amsgrad"].rule, adam_group(amsgrad=flag), reference.adam) for flag in (True, False)]
    rig = Rig([(20,), (30,)], rule=cases[0].rule, groups=[0, 1], device=device)
    for _ in range(3):
        check_step(rig, rig.random_grads(), cases)


def test_changed_numbers_reach_the_next_step(device):
    rig = Rig([(20,), (30,)], rule=SGD, groups=[0, 1], device=device)
    groups = [sgd_case(lr=0.1), sgd_case(lr=0.2)]
    for lr in (0.1, 0.01, 0.01, 0.5):
        groups[1].group["lr"] = lr
        check_step(rig, rig.random_grads(), groups)


def test_table_is_copied_only_when_a_number_changed(device, monkeypatch):
    from flatvars.kernels import hyper

    copies = []
    monkeypatch.setattr(hyper, "upload", lambda table, host: copies.append(host) or table.copy_(host))
    rig = Rig([(20,)], rule=SGD, device=device)
    group = sgd_group()
    for lr in (0.1, 0.1, 0.1, 0.2, 0.2):
        group["lr"] = lr
        rig.step([torch.ones(20, device=device)], [group])
    assert len(copies) == 2
    rig.step([torch.ones(20, device=device)], [group], max_norm=1.0)
    assert len(copies) == 3


def test_rows_are_made_of_groups_that_changed(device):
    """Whose values are the same objects are not looked at; what can change in place is."""
    made = []

    def numbers(group):
        made.append(group)
        return adam_numbers(group)

    rule = replace(ADAMW, hyper=numbers)
    table = HyperTable(torch.float32, device)
    groups = [adam_group(params=[]), adam_group(params=[], lr=0.5, betas=[0.9, 0.999])]
    for change in (
        lambda: None,
        lambda: groups[0].update(lr=0.25),
        lambda: groups[1]["betas"].__setitem__(0, 0.8),
        lambda: groups[1].update(betas=(0.7, 0.9)),
        lambda: groups[1]["params"].append(torch.ones(1)),
        lambda: groups[0].update(lr=torch.tensor(0.125)),
        lambda: groups[0]["lr"].fill_(2.0),
    ):
        change()
        expected = [[7.0, *map(float, adam_numbers(group))] for group in groups]
        assert table.upload(rule, groups, 7.0).tolist() == torch.tensor(expected).tolist()
    made.clear()
    table.upload(rule, groups, 7.0)
    assert made == [groups[0]]  # a tensor may hold another number now
    groups[0]["lr"] = 0.1
    table.upload(rule, groups, 7.0)
    made.clear()
    table.upload(rule, groups, 7.0)
    assert made == []
    assert table.upload(rule, groups, None)[:, 0].tolist() == [math.inf] * 2
    assert table.upload(SGD, [sgd_group(), sgd_group()], None).shape != (2, 1 + len(adam_numbers(groups[0])))


def test_a_group_is_checked_unless_a_schedule_turned_its_rate_alone(device):
    checked = []
    table = HyperTable(torch.float32, device)
    groups = [adam_group(params=[])]
    few, more = 0.1, 0.2  # the same objects are the same numbers
    for lr, eps in ((1.0, few), (0.25, few), (math.nan, few), (0.5, few), (0.5, more), (0.125, more), (2, more)):
        groups[0].update(lr=lr, eps=eps)
        table.upload(ADAMW, groups, 7.0, lambda group: checked.append((group["lr"], group["eps"])))
    assert str(checked) == "[(1.0, 0.1), (nan, 0.1), (0.5, 0.2), (2, 0.2)]"


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_learning_rate_in_a_tensor(shape, device):
    """Its value is read at every step: schedulers write it in place."""
    rig = Rig([(20,)], rule=SGD, device=device)
    lr = torch.full(shape, 0.1, dtype=torch.float64, device=device)
    for value in (0.1, 0.7):
        lr.fill_(value)
        before = rig.copies(rig.values.stream)[0]
        rig.step([torch.ones(20, device=device)], [sgd_group(lr=lr)])
        torch.testing.assert_close(rig.copies(rig.values.stream)[0], before - value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 1e6, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_clip(dtype, max_norm, device):
    case = adamw_case(weight_decay=0.1)
    rig = Rig([(20,), (2050,)], dtype, rule=ADAMW, device=device)
    check_step(rig, rig.random_grads(), [case], max_norm=max_norm)
    rig.assert_clean()


def test_clipping_leaves_gradients_alone(device):
    rig = Rig([(20,)], rule=SGD, device=device)
    grad = torch.full((20,), 3.0, device=device)
    rig.step([grad], [sgd_group()], max_norm=0.1)
    assert grad.tolist() == [3.0] * 20


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_and_is_not_skipped(bad, device):
    """As torch: NaN clips everything to NaN; inf clips finite gradients to 0 and makes its own element NaN."""
    rig = Rig([(20,), (30,)], rule=SGD, device=device)
    before = rig.copies(rig.values.stream)
    grads = rig.random_grads()
    grads[0][3] = bad
    rig.step(grads, [sgd_group()], max_norm=1.0)
    after = rig.copies(rig.values.stream)
    assert math.isnan(after[0][3])
    if math.isnan(bad):
        assert all(bool(value.isnan().all()) for value in after)
    else:
        assert after[1].tolist() == before[1].tolist()
    rig.assert_clean()
