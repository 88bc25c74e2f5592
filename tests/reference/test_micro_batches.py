"""Gradients of micro-batches, added up."""

from __future__ import annotations

import math

import pytest
import torch

import flatvars as fv

from .material import batch_loss, encoder_and_head, loss_of, pair


@pytest.mark.row("B-09")
@pytest.mark.row("J-06")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_micro_batches_are_one_big_batch(dtype: torch.dtype) -> None:
    """k gradients of k-ths, added in float32: the mean over the batch, to the rounding of each."""
    data = torch.randn(12, 5).to(dtype)
    stores = []
    for k in (1, 4):
        store, model = encoder_and_head()
        store.set_dtype(dtype)
        for part in data.chunk(k):
            loss_of(model, part).backward()
            store.accumulate(scale=1 / k)
        assert store.grads.dtype == torch.float32
        stores.append(store)
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (3e-2, 1e-2)
    torch.testing.assert_close(stores[0].grads, stores[1].grads, rtol=rtol, atol=atol)
    assert stores[0].grads.norm() > 0.1


@pytest.mark.row("B-09")
def test_the_next_batch_starts_anew() -> None:
    store, model = encoder_and_head()
    optimizer = fv.optim.SGD(store, lr=0.0)
    for _ in range(2):
        for _ in range(3):
            loss_of(model).backward()
            store.accumulate(scale=1 / 3)
        summed = store.grads.clone()
        optimizer.step()
    loss_of(model).backward()
    store.accumulate()
    torch.testing.assert_close(store.grads, summed)


@pytest.mark.row("J-06")
def test_a_micro_batch_that_is_not_finite_can_be_left_out() -> None:
    """Without synchronizing until asked: the norm is a device scalar, and the user decides before accumulating."""
    ours, theirs, store = pair()
    for seed, factor in [(0, 1.0), (1, math.nan), (2, 1.0)]:
        (factor * batch_loss(ours, seed)).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()])
        if norm.isfinite():
            store.accumulate(scale=1 / 2)
        else:
            ours.zero_grad()
    (0.5 * batch_loss(theirs, 0) + 0.5 * batch_loss(theirs, 2)).backward()
    for v, param in zip(store.trainable_variables(), theirs.parameters(), strict=True):
        torch.testing.assert_close(v.grad, param.grad, rtol=1e-5, atol=1e-6)
