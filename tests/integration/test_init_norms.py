"""Rules for whole models: norms stay norms, and a rule that hits what it is not meant for says so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import flatvars as fv


def network(device: str = "cpu") -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 4, device=device), nn.LayerNorm(4, device=device), nn.BatchNorm1d(4, device=device)
    )


def test_a_rule_for_matrices_says_so_when_it_meets_a_vector() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4))
    store = fv.VarStore.from_module(model)
    before = store.values.clone()
    for pattern in ("*", re.compile("weight")):
        with pytest.raises(fv.InitError, match=r"takes its scale .* '1\.weight' .*fv\.init\.keep_norms\(model\)"):
            fv.init.apply_(model, {pattern: fv.init.xavier_normal()})
    assert torch.equal(store.values, before)
    rules = {"1.weight": fv.init.kaiming_uniform(), "1.bias": fv.init.zeros(), "*": fv.init.xavier_normal()}
    fv.init.apply_(model, rules)  # named exactly, it is meant
    fv.init.apply_(model, {"*": fv.init.kaiming_normal(fan=4)})  # and so it is with a width of its own
    assert model[1].weight.unique().numel() == 4


def test_norms_keep_what_they_have() -> None:
    model = network()
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    store = fv.VarStore.from_module(model)
    rules = {**fv.init.keep_norms(model), "*.bias": fv.init.zeros(), "*": fv.init.xavier_normal()}
    before = model[0].weight.detach().clone()
    fv.init.apply_(model, rules, seed=1)
    assert torch.equal(model[1].weight, torch.full((4,), 3.0))
    assert not torch.equal(model[0].weight, before)
    assert not model[0].bias.any()
    store.check()


def test_norms_from_the_meta_device_are_norms() -> None:
    model = network("meta")
    rules = {**fv.init.keep_norms(model), "*.bias": fv.init.zeros(), "*": fv.init.xavier_normal()}
    fv.VarStore.from_module(model, init=rules)
    fresh = network()
    for name, value in fresh.state_dict().items():
        if not name.startswith("0."):
            assert torch.equal(model.state_dict()[name], value), name


def test_a_pattern_may_match_nothing_if_that_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    store = fv.VarStore.from_module(model)
    with pytest.raises(
        fv.UnknownNameError, match=r"'0\.wieght' matches none .* nearest are '0\.weight'.*missing_ok=True"
    ):
        store.freeze("0.wieght")
    assert store.select(fv.select("*.bias", missing_ok=True)) == []
    groups = [{"params": fv.select("*.bias", missing_ok=True), "weight_decay": 0.0}, {"params": "*"}]
    opt = fv.optim.AdamW(groups, store=store)
    assert [len(group["params"]) for group in opt.param_groups] == [0, 1]
    store.add("late.bias", torch.zeros(2))
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert [len(group["params"]) for group in opt.param_groups] == [1, 1]
