"""The two forms of Schedule-Free values: what `eval()` gives is the average, and `train()` leads back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import flatvars as fv
from flatvars.errors import FlatvarsError
from tests.support.launches import count_operators

from .test_rule_family import Run, set_gradients

KINDS = ["schedule-free-adamw", "schedule-free-sgd"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def averages(run: Run, steps: int) -> dict[str, torch.Tensor]:
    """The weighted averages of z over the steps, by the paper's definition and from the states alone."""
    sums: dict[str, Any] = {}
    for step in range(steps):
        before = {name: run.opt.state[p]["weight_sum"].item() for name, p in params(run) if step}
        set_gradients(run.module, step)
        run.opt.step()
        for name, param in params(run):
            state = run.opt.state[param]
            weight = state["weight_sum"].double() - before.get(name, 0.0)
            total, weights = sums.get(name, (0.0, 0.0))
            sums[name] = total + weight * state["z"].double(), weights + weight
    return {name: total / weights for name, (total, weights) in sums.items()}


def params(run: Run) -> list[tuple[str, Any]]:
    return list(run.module.named_parameters())


@each_kind
def test_eval_gives_the_average(kind: str) -> None:
    run = Run(kind)
    expected = averages(run, 6)
    run.opt.eval()
    for name, param in params(run):
        torch.testing.assert_close(param.double(), expected[name], rtol=1e-5, atol=1e-6)


@each_kind
def test_train_leads_back_and_twice_is_once(kind: str) -> None:
    run = Run(kind).steps(0, 3)
    before = {name: param.detach().clone() for name, param in params(run)}
    counts = [float(run.opt.state[param]["step"]) for _, param in params(run)]
    run.opt.eval()
    average = {name: param.detach().clone() for name, param in params(run)}
    run.opt.eval()
    assert all(torch.equal(param, average[name]) for name, param in params(run))
    assert any(not torch.equal(param, before[name]) for name, param in params(run))
    run.opt.train()
    run.opt.train()
    for name, param in params(run):
        torch.testing.assert_close(param.detach(), before[name], rtol=1e-5, atol=1e-6)
    assert [float(run.opt.state[param]["step"]) for _, param in params(run)] == counts


@each_kind
def test_a_step_with_averaged_values_is_refused(kind: str) -> None:
    run = Run(kind).steps(0, 2)
    run.opt.eval()
    set_gradients(run.module, 3)
    with pytest.raises(FlatvarsError, match="train"):
        run.opt.step()
    run.opt.train()
    run.opt.step()


@each_kind
def test_what_never_stepped_stays(kind: str) -> None:
    run = Run(kind)
    before = run.module.matrix.detach().clone()
    set_gradients(run.module, 0, ("matrix",))
    run.opt.step()
    run.opt.eval()
    assert torch.equal(run.module.matrix, before)


@each_kind
def test_the_form_is_saved(kind: str) -> None:
    run = Run(kind).steps(0, 3)
    run.opt.eval()
    state, values = copy.deepcopy(run.opt.state_dict()), run.module.state_dict()
    twin = Run(kind)
    twin.module.load_state_dict(values)
    twin.opt.load_state_dict(state)
    with pytest.raises(FlatvarsError, match="train"):
        twin.opt.step()
    for one in (run, twin):
        one.opt.train()
        one.steps(3, 5)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(params(run), params(twin), strict=True))


def test_frozen_variables_and_masked_elements_are_averaged_as_they_trained() -> None:
    run = Run("schedule-free-adamw")
    mask = torch.zeros(40, 1, dtype=torch.bool)
    mask[::2] = True
    run.store.set_trainable_mask("matrix", mask)
    kept = run.module.matrix.detach()[1::2].clone()
    run.steps(0, 3)
    run.store.freeze("long")
    before = run.module.long.detach().clone()
    run.opt.eval()
    assert torch.equal(run.module.matrix[1::2], kept)
    assert not torch.equal(run.module.long, before)


def test_an_exchange_runs_no_operator_for_each_variable() -> None:
    few, many = (fv.VarStore(), fv.VarStore())
    counts = []
    for store, number in ((few, 2), (many, 40)):
        for i in range(number):
            store.add(f"v{i}", torch.ones(3)).grad = torch.ones(3)
        optimizer = fv.optim.ScheduleFreeSGD(store)
        optimizer.step()
        with count_operators() as operators:
            optimizer.eval()
        counts.append(len(operators))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("kind", "numbers"), [("ScheduleFreeSGD", {"momentum": 0.0}), ("ScheduleFreeAdamW", {"betas": (0.0, 0.9)})]
)
def test_without_interpolation_there_is_no_way_back(kind: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        getattr(fv.optim, kind)(fv.VarStore(), **numbers)
