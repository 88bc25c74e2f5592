"""Param groups made for everybody: who decays, learning rates by layer; and a learning rate that no rule reads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.rules import CASES


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ModuleList([nn.Linear(4, 4, bias=False)] * 1))
            for _ in range(3)
        )
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7)


def names_of(optimizer: fv.optim.Optimizer) -> list[list[str]]:
    return [[v.name for v in variables] for variables in optimizer.membership.groups]


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    model = Net()  # which says what is an embedding and what a norm, as long as it is there
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.AdamW(fv.optim.decay_groups(store, 0.3, exclude="head.*"), store=store)
    decaying, others = names_of(optimizer)
    assert decaying == [f"layers.{i}.{part}.weight" for i in range(3) for part in ("0", "2.0")]
    assert {"tokens.weight", "norm.weight", "norm.bias", "head.weight", "layers.0.0.bias"} <= set(others)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    store.add("late", torch.ones(3, 3))
    store.add("late_norm", torch.ones(3, 3))
    optimizer.follow()
    assert names_of(optimizer)[0][-1] == "late"
    assert names_of(optimizer)[1][-1] == "late_norm"
    assert names_of(copy.deepcopy((model, store, optimizer))[2]) == names_of(optimizer)


def test_what_is_tied_to_an_embedding_does_not_decay() -> None:
    model = Net()
    model.head.weight = model.tokens.weight
    optimizer = fv.optim.AdamW(fv.optim.decay_groups(store := fv.VarStore.from_module(model)), store=store)
    assert "tokens.weight" in names_of(optimizer)[1]


def test_learning_rates_fall_towards_the_input() -> None:
    store = fv.VarStore.from_module(Net())
    optimizer = fv.optim.SGD(fv.optim.layerwise_lr(store, lr=1.0, decay=0.5), store=store)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0625, 0.125, 0.25, 0.5, 1.0]
    found = names_of(optimizer)
    assert found[0] == ["tokens.weight"]
    assert all(name.startswith("layers.1.") for name in found[2])
    assert found[4] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_learning_rates_by_layer_with_decay_groups() -> None:
    store = fv.VarStore.from_module(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2, bias=False)))
    optimizer = fv.optim.AdamW(fv.optim.layerwise_lr(store, 0.1, 0.5, weight_decay=0.2, blocks=""), store=store)
    pairs = list(zip(names_of(optimizer), optimizer.param_groups, strict=True))
    found = [(names, group["lr"], group["weight_decay"]) for names, group in pairs]
    assert found[:4] == [
        (["0.weight"], 0.0125, 0.2),
        (["0.bias"], 0.0125, 0.0),
        (["1.weight"], 0.025, 0.2),
        (["1.bias"], 0.025, 0.0),
    ]
    store.add("head", torch.ones(2, 2))
    optimizer.follow()
    assert names_of(optimizer)[4:] == [["2.weight"], [], ["head"], []]


def test_what_has_no_layers_is_refused() -> None:
    store = fv.VarStore.from_module(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no variable of the store has a number"):
        fv.optim.layerwise_lr(store)
    with pytest.raises(ValueError, match="behind 'encoder'"):
        fv.optim.layerwise_lr(store, blocks="encoder")
    with pytest.raises(ValueError, match="above 0"):
        fv.optim.layerwise_lr(store, decay=0.0)
    with pytest.raises(TypeError, match="from_module"):
        fv.optim.decay_groups(nn.Linear(2, 2))  # type: ignore[arg-type]


# The gradient alone has no rate.
@pytest.mark.parametrize("name", [name for name in CASES if name != "adafactor-gradient"])
def test_no_rule_reads_a_learning_rate_that_is_a_tensor(name: str) -> None:
    """It goes into the table of numbers by a copy on the device, so that a scheduler may write it there."""
    rate = torch.tensor(0.01)
    assert any(number is rate for number in CASES[name].rule.row({**CASES[name].group, "lr": rate}))
