"""Several rules of a user's in one optimizer: a launch each, states of their own groups, one record."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import flatvars as fv
from flatvars.kernels.lang import tl


@fv.optim.rule(states=("momentum",), hyper=("lr", "beta"))
def heavy(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    m = hyper.beta * state[0] + g
    return p - hyper.lr * m, (m,)


@fv.optim.rule(states=("age",), hyper=("lr",))
def signs(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    return p - hyper.lr * tl.sign(g), (state[0] + 1.0,)


def made() -> tuple[fv.VarStore, fv.optim.RuleOptimizer]:
    store = fv.VarStore()
    for name in ("a", "b", "c"):
        store.add(name, torch.ones(5))
    groups = [{"params": "b", "rule": signs, "lr": 0.5}, {"params": "*"}]
    return store, fv.optim.RuleOptimizer(groups, heavy, store=store, lr=0.1, beta=0.5)


def step(store: fv.VarStore, optimizer: fv.optim.RuleOptimizer) -> None:
    for i, variable in enumerate(store.variables().values()):
        variable.param.grad = torch.full((5,), float(i + 1))
    optimizer.step()


def test_each_group_is_stepped_by_its_rule_and_goes_on_from_files_and_copies(tmp_path: Path) -> None:
    store, optimizer = made()
    step(store, optimizer)
    assert [store[name].param[0].item() for name in "abc"] == pytest.approx([0.9, 0.5, 0.7])
    assert [sorted(optimizer.state[store[name].param]) for name in "ab"] == [["momentum", "step"], ["age", "step"]]
    store.save(tmp_path / "run.safetensors", optimizer)
    other = made()
    other[0].load(tmp_path / "run.safetensors", other[1])
    third = made()
    third[0].copy_(store)
    third[1].load_state_dict(optimizer.state_dict())
    copied = copy.deepcopy((store, optimizer))
    for one in ((store, optimizer), other, third, copied):
        step(*one)
        assert [one[0][name].param[0].item() for name in "abc"] == pytest.approx([0.75, 0.0, 0.25])
    assert optimizer.param_groups[0]["rule"] == "signs"


def test_what_does_not_fit_is_refused() -> None:
    store, optimizer = made()
    late = store.add("late", torch.ones(2))

    @fv.optim.rule(hyper=("lr",))
    def signs(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        return p - hyper.lr * g, state

    for group, match in (
        ({"params": "late", "rule": signs}, "two rules of one optimizer are called 'signs'"),
        ({"params": "late", "rule": "other"}, "names the rule 'other'"),
    ):
        with pytest.raises(ValueError, match=match):
            optimizer.add_param_group(group)
    optimizer.param_groups[0]["rule"] = "unknown"
    late.grad = torch.ones(2)
    with pytest.raises(ValueError, match="names the rule 'unknown'"):
        optimizer.step()


def test_rprop_warns_once_of_a_learning_rate_that_it_does_not_read() -> None:
    store = fv.VarStore()
    weight = store.add("weight", torch.ones(3))
    optimizer = fv.optim.Rprop(store, lr=0.1)
    for rate in (0.2, 0.2):  # before the first step, and as it was
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.ones(3)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.3
    with pytest.warns(UserWarning, match=r"Rprop reads lr .* changed to 0\.3"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.4
    optimizer.step()
    assert optimizer.state[weight]["step_size"].tolist() == pytest.approx([0.2 * 1.2**3] * 3)
