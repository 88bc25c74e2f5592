"""Freezing: what it takes, what it keeps, what comes back."""

from __future__ import annotations

import re

import pytest
import torch

import flatvars as fv

from .material import batch_loss, encoder_and_head, loss_of, make, pair, two_groups


@pytest.mark.row("T-VS-16")
def test_what_is_created_after_freeze_is_trained() -> None:
    store = fv.VarStore()
    old = store.root().zeros("old", (2,))
    store.freeze()
    new = store.root().zeros("new", (2,))
    assert not old.requires_grad
    assert new.requires_grad
    assert store.values.shape == (64,)
    assert new.requires_grad


@pytest.mark.row("T-VS-17")
def test_unfreeze_restores_what_was_trained_and_leaves_the_rest() -> None:
    """tch forgets what the user had frozen alone, and would train it."""
    store = fv.VarStore()
    a, b = store.root().zeros("a", (2,)), store.root().zeros("b", (2,))
    mean = store.root().zeros_no_train("running_mean", (2,))
    b.requires_grad_(False)
    store.freeze()
    store.unfreeze()
    assert a.requires_grad
    assert not b.requires_grad
    assert not mean.requires_grad
    store.unfreeze("*")
    assert b.requires_grad
    assert not mean.requires_grad


@pytest.mark.row("C-08", "B-06")
def test_selected_variables_are_frozen_and_the_rest_is_not() -> None:
    store = fv.VarStore()
    for name in ("encoder", "decoder"):
        (store.root() / name).zeros("w", (2,))
    store.freeze("encoder.*")
    assert [v.name for v in store.variables().values() if v.requires_grad] == ["decoder.w"]
    store.unfreeze("encoder.w")
    assert store["encoder.w"].requires_grad


def test_freeze_can_keep_gradients() -> None:
    store = fv.VarStore()
    weight = store.root().zeros("w", (2,))
    weight.grad = torch.ones(2)
    optimizer = fv.optim.SGD(store, lr=1.0)
    store.freeze(clear_grad=False)
    optimizer.step()
    assert weight.tolist() == [0.0, 0.0], "the mask wins over a gradient that is there"
    store.unfreeze()
    optimizer.step()
    assert weight.tolist() == [-1.0, -1.0]
    store.freeze()
    assert weight.grad is None


@pytest.mark.row("B-06")
def test_only_what_is_selected_is_frozen() -> None:
    store, model = encoder_and_head()
    before = {name: v.value.clone() for name, v in store.variables().items()}
    store.freeze(fv.select("encoder.*", re.compile(r"^norm"), exclude="*.bias"))
    frozen = {"encoder.0.weight", "norm.weight"}
    assert {v.name for v in store.trainable_variables() if not v.requires_grad} == frozen
    fv.optim.SGD(store, lr=0.1).backward_step(loss_of(model))
    moved = {name for name, v in store.variables().items() if not torch.equal(v.value, before[name])}
    assert moved == set(before) - frozen
    store.unfreeze("norm.*")
    assert {v.name for v in store.trainable_variables() if not v.requires_grad} == {"encoder.0.weight"}


@pytest.mark.row("J-05")
def test_frozen_variables_keep_their_bits_and_their_moments() -> None:
    ours, _, store = pair()
    optimizer = fv.optim.AdamW(store, lr=0.01, weight_decay=0.5)
    optimizer.backward_step(batch_loss(ours))
    store.freeze("0.*")
    value = store["0.weight"].value.clone()
    state = {key: entry.clone() for key, entry in optimizer.state[ours[0].weight].items()}
    for seed in range(3):
        optimizer.backward_step(batch_loss(ours, seed))
    assert torch.equal(store["0.weight"].value, value)
    store.unfreeze()
    assert all(torch.equal(entry, state[key]) for key, entry in optimizer.state[ours[0].weight].items())


@pytest.mark.row("T-O-16")
@pytest.mark.parametrize("how", ["plain", "store"])
def test_a_gradient_that_is_left_on_a_frozen_variable(how: str) -> None:
    """Plain `requires_grad_(False)` leaves it, and it is stepped as by libtorch; `store.freeze` wins."""
    store, a, b = two_groups()
    optimizer = make("sgd", store)
    (a.sum() + b.sum()).backward()
    if how == "plain":
        b.requires_grad_(False)
    else:
        store.freeze("b", clear_grad=False)
    optimizer.step()
    assert bool(b.max() < 1.0) == (how == "plain")
