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


def test_a_recarve_waits_for_kernels_of_other_streams(device):
    """They read the buffer through a Parameter, of which `record_stream` tells the allocator nothing."""
    store = store_of([(1 << 22,), (3,)], device=device)
    param = store["v0"].param
    with torch.no_grad():
        param.fill_(1.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    total = torch.zeros(1 << 22, device=device)
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(400):
            total.add_(param)
    store.double()  # frees the buffer, and what is made next may lie in its memory
    torch.full((1 << 22,), -7.0, device=device)
    torch.cuda.synchronize()
    assert (total == 400.0).all()


def fill_in_a_child(module):
    with torch.no_grad():
        for param in module.parameters():
            param.fill_(param.numel())
    torch.cuda.synchronize()


def test_parameters_of_a_shared_store_can_be_sent_to_a_process(device):
    """Which finds memory by the first address of its storage: that of the whole buffer."""
    module = torch.nn.Linear(3, 2, device=device)
    store = fv.VarStore.from_module(module).share_memory_()
    child = torch.multiprocessing.get_context("spawn").Process(target=fill_in_a_child, args=(module,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert store.values.sum().item() == 6 * 6 + 2 * 2
    store.check()
