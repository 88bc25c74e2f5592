"""Kernels run where the store lies and on the stream that is current, whatever device is."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from tests.support.stores import set_grads, store_of
from tests.support.tolerances import assert_same_bits


def train(device, steps=2):
    torch.manual_seed(5)
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=0.5)
    for _ in range(steps):
        for variable in store.trainable_variables():
            variable.param.grad = torch.randn(variable.shape).to(device)
        store.accumulate()
        optimizer.step()
    return store


def test_a_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("two GPUs are needed")
    with torch.cuda.device(0):
        there = train(torch.device("cuda", 1))
    with torch.cuda.device(1):
        here = train(torch.device("cuda", 1))
    assert_same_bits(there.values, here.values)


def test_a_stream_of_ones_own(device):
    """Gradients that are still being computed on a stream are read behind them, on the same stream."""
    store = store_of([(1 << 22,)], device=device)
    optimizer = fv.optim.SGD(store, lr=1.0, max_norm=1e9)
    set_grads(store)
    optimizer.step()
    before = store["v0"].value.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        grad = torch.zeros(1 << 22, device=device)
        for _ in range(200):
            grad.add_(0.25)
        store["v0"].param.grad = grad
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    assert optimizer.grad_norm.item() == 50.0 * 2**11
    torch.testing.assert_close(store["v0"].value, before - 50.0, rtol=0, atol=1e-4)


def test_a_gradient_on_another_device_is_refused(device):
    """Its address means nothing to the kernel."""
    store = store_of([(8,), (4,)], device=device)
    with pytest.raises(fv.GradientError, match="'v1'"):
        store.accumulate([torch.ones(8, device=device), torch.ones(4)])
