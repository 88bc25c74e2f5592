"""A step never waits for the device: CUDA itself raises where it would."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import flatvars as fv
from tests.support.stores import Net, backward, batch, set_grads, store_of


@contextmanager
def no_sync() -> Iterator[None]:
    with warnings.catch_warnings():
        # torch says once per process that the mode is a prototype.
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_mode_catches_item(device):
    number = torch.zeros((), device=device)
    with pytest.raises(RuntimeError, match="synchroniz"), no_sync():
        number.item()


OPTIONS = {
    "plain": {},
    "clip": {"max_norm": 1.0},
    "skip": {"skip_nonfinite": True},
    "both": {"max_norm": 0.1, "skip_nonfinite": True},
}


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", [fv.optim.SGD, fv.optim.AdamW, fv.optim.Lion])
def test_step(make, options, grads, device):
    store = store_of(device=device, grads=grads)
    optimizer = make(store, **options)
    set_grads(store)
    optimizer.step()  # lays out tables, reads step counts once, compiles
    before = store.values.clone()
    with no_sync():
        for _ in range(3):
            set_grads(store)
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.equal(store.values, before)


def test_new_numbers_and_addresses(device):
    """Uploads come from page-locked memory, which nobody waits for."""
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    set_grads(store)
    optimizer.step()
    kept = []
    with no_sync():
        for k in range(5):
            kept.append(set_grads(store))
            optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
            optimizer.step()
    assert store["v0"].value.isfinite().all()


def test_learning_rate_in_a_device_tensor(device):
    store = store_of([(8,)], device=device)
    lr = torch.tensor(0.5, device=device)
    optimizer = fv.optim.SGD(store, lr=lr)
    store["v0"].param.grad = torch.ones(8, device=device)
    optimizer.step()
    before = store["v0"].value.clone()
    with no_sync():
        lr.fill_(2.0)
        optimizer.step()
    assert torch.equal(store["v0"].value, before - 2.0)


def test_whole_training_loop(device):
    model = Net().to(device)
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.AdamW(store, max_norm=1.0, skip_nonfinite=True)
    data = [batch(device) for _ in range(6)]
    for step, micro in enumerate(data):
        if step < 2:
            backward(model, micro)
            store.accumulate()
            optimizer.step()
            optimizer.zero_grad()
            continue
        with no_sync():
            backward(model, micro)
            store.accumulate()
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.skipped.item() == 0
