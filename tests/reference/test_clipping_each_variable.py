"""Clipping of each variable by its own norm."""

from __future__ import annotations

import math

import pytest
import torch

import flatvars as fv

from .material import encoder_and_head, loss_of


@pytest.mark.row("B-08")
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_clipping_each_variable(order: float, mode: str) -> None:
    store, model = encoder_and_head(mode)
    store.root().ones("unused", (3,))
    (30.0 * loss_of(model)).backward()
    before = {name: grad.clone() for name, v in store.variables().items() if (grad := v.grad) is not None}
    expected_norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in before.values()]), order)
    limit = sorted(torch.linalg.vector_norm(g, order).item() for g in before.values())[2] * 1.01
    norm = store.clip_grad_norm_(limit, order, per_tensor=True)
    torch.testing.assert_close(norm, expected_norm)
    assert store["unused"].grad is None
    clipped = 0
    for name, grad in before.items():
        own = torch.linalg.vector_norm(grad, order)
        clipped += bool(own > limit)
        torch.testing.assert_close(store[name].grad, grad * min(1.0, limit / (own.item() + 1e-6)))
    assert 0 < clipped < len(before)
    store.check()


@pytest.mark.row("B-08")
def test_clipping_each_variable_keeps_a_nan_to_itself() -> None:
    store, model = encoder_and_head()
    loss_of(model).backward()
    model[3].bias.grad[0] = math.nan
    head = store["head.weight"].grad.clone()
    with pytest.raises(fv.GradientError, match=r"norm of order 2\.0 is nan"):
        store.clip_grad_norm_(1e6, error_if_nonfinite=True, per_tensor=True)
    assert store.clip_grad_norm_(1e6, per_tensor=True).isnan()
    assert store["head.bias"].grad.isnan().all()
    assert torch.equal(store["head.weight"].grad, head)


@pytest.mark.row("B-08")
def test_clipping_each_variable_needs_a_positive_order() -> None:
    store, model = encoder_and_head()
    loss_of(model).backward()
    with pytest.raises(ValueError, match=r"per_tensor=True clips by norms of a positive order, not of 0\.0"):
        store.clip_grad_norm_(1.0, 0.0, per_tensor=True)
    assert model[3].bias.grad is not None
