"""Norms and clipping with masked elements equal torch's of gradients that are zero there."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from .masked_pairs import MASKS, backward, masked, reference_step
from .pairs import MODES, NORM_TOLERANCE, assert_close


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0, math.inf, -math.inf, 0.0])
def test_norms_of_every_order(order: float, mode: str) -> None:
    pair = masked(mode=mode)
    backward(pair, torch.Generator().manual_seed(5))
    expected = torch.nn.utils.get_total_norm([param.grad for param in pair.theirs.parameters()], order)
    torch.testing.assert_close(pair.store.grad_norm(order), expected, rtol=1e-5, atol=0.0)
    if order > 0.0:
        for name, (value, grad) in pair.store.norms(order).items():
            param = pair.theirs.get_parameter(name)
            for found, tensor in ((value, param.detach()), (grad, param.grad)):
                # In double precision: torch's own sums of many powers are off by more than this in float32.
                exact = torch.linalg.vector_norm(tensor.double(), order).float()
                torch.testing.assert_close(found, exact, rtol=5e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_clip_grad_norm(mode: str, order: float) -> None:
    pair = masked("sgd", mode)
    backward(pair, torch.Generator().manual_seed(5))
    expected = clip_grad_norm_(pair.theirs.parameters(), 0.5, order)
    torch.testing.assert_close(pair.store.clip_grad_norm_(0.5, order), expected, rtol=1e-5, atol=0.0)
    for name, param in pair.theirs.named_parameters():
        assert_close(pair.store[name].grad, param.grad, name)
    pair.opt.step()
    reference_step(pair)
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_clip_grad_value(mode: str) -> None:
    pair = masked(mode=mode)
    backward(pair, torch.Generator().manual_seed(5))
    clip_grad_value_(pair.theirs.parameters(), 0.3)
    pair.store.clip_grad_value_(0.3)
    for name, param in pair.theirs.named_parameters():
        assert_close(pair.store[name].grad, param.grad, name)


def test_a_norm_of_nan_does_not_reach_masked_elements_of_the_stream() -> None:
    """Clipping multiplies the stream by NaN, and 0 * NaN is no zero."""
    pair = masked()
    backward(pair, torch.Generator().manual_seed(5))
    pair.ours.a.grad[0] = math.nan
    assert pair.store.clip_grad_norm_(1.0).isnan()
    for name, mask in MASKS.items():
        assert not pair.store[name].grad[~mask].any()
        assert pair.store[name].grad[mask].isnan().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "lion"])
def test_clipping_inside_the_step(optimizer: str, mode: str) -> None:
    pair = masked(optimizer, mode, max_norm=0.7, skip_nonfinite=True)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        pair.zero_grad()
        backward(pair, generator)
        expected = clip_grad_norm_(pair.theirs.parameters(), 0.7)
        pair.opt.step()
        reference_step(pair)
        torch.testing.assert_close(pair.opt.grad_norm, expected, rtol=NORM_TOLERANCE, atol=0.0)
    assert pair.opt.skipped.item() == 0
    pair.assert_values_close()
