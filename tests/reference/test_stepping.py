"""Steps: with gradients of some variables, of none, of numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import flatvars as fv

from .material import assert_same, batch_loss, encoder_and_head, loss_of, make, pair, two_groups


@pytest.mark.row("T-O-13")
def test_zero_grad_makes_none() -> None:
    store, a, b = two_groups()
    optimizer = make("sgd", store)
    (a.sum() + b.sum()).backward()
    optimizer.zero_grad()
    assert a.grad is None
    assert b.grad is None
    assert store.gradient_names() == []


@pytest.mark.row("T-O-16")
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_step_leaves_variables_without_a_gradient(name: str) -> None:
    store, a, b = two_groups()
    optimizer = make(name, store, weight_decay=0.5)
    a.sum().backward()
    optimizer.step()
    assert torch.equal(b.detach(), torch.ones(2))
    assert optimizer.state[b] == {}
    assert a.max() < 1.0


@pytest.mark.row("T-O-17")
def test_backward_step_is_zero_grad_backward_step() -> None:
    results = []
    for one_call in (True, False):
        store, a, b = two_groups()
        optimizer = make("adamw", store)
        a.grad = torch.full((3,), 100.0)
        loss = (a * a).sum() + b.sum()
        if one_call:
            optimizer.backward_step(loss)
        else:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(store.ravel())
    assert torch.equal(*results)


@pytest.mark.row("D-01")
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_strict_steps_name_what_was_not_used(mode: str) -> None:
    store, model = encoder_and_head(mode)
    store.root().ones("forgotten", (3,))
    optimizer = fv.optim.SGD(store, lr=0.1)
    before = store.ravel()
    loss_of(model).backward()
    with pytest.raises(fv.GradientError, match=r"1 variables have no gradient: 'forgotten'; nothing was stepped"):
        optimizer.step(strict=True)
    assert torch.equal(store.ravel(), before)
    store.freeze("forgotten")
    optimizer.step(strict=True)
    assert not torch.equal(store.ravel(), before)


@pytest.mark.row("J-02")
def test_one_flat_step_is_the_steps_of_all_tensors() -> None:
    """Elementwise rules do not see where a variable ends."""
    ours, theirs, store = pair()
    flat = nn.Parameter(store.ravel())
    optimizer, reference = fv.optim.AdamW(store, lr=0.01), torch.optim.AdamW([flat], lr=0.01)
    for seed in range(4):
        optimizer.zero_grad()
        batch_loss(ours, seed).backward()
        flat.grad = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
        optimizer.step()
        reference.step()
    torch.testing.assert_close(store.ravel(), flat.detach(), rtol=5e-6, atol=5e-7)


@pytest.mark.row("J-07")
def test_steps_that_are_not_finite_are_counted_and_change_nothing() -> None:
    ours, theirs, store = pair()
    optimizer = fv.optim.AdamW(store, lr=0.01, skip_nonfinite=True)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for seed, factor in enumerate([1.0, math.nan, math.inf, 1.0, -math.inf]):
        optimizer.backward_step(factor * batch_loss(ours, seed))
        if math.isfinite(factor):
            reference.zero_grad()
            batch_loss(theirs, seed).backward()
            reference.step()
    assert optimizer.skipped.item() == 3
    assert optimizer.skipped.device == store.device
    assert optimizer.state[ours[0].weight]["step"] == 2.0
    assert_same(ours, theirs)
