"""A step never waits for the device: found on CPU tensors too, where a synchronization would go unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import flatvars as fv
from flatvars.backend import use_backend
from tests.support.host_sync import HostSynchronizationError, no_host_sync
from tests.support.stores import Net, backward, batch, set_grads, store_of
from tests.support.tolerances import assert_same_bits

from .conftest import ON_GPU

# The allocator gives other addresses after some steps; the interpreter takes a tenth of a second for each.
REPEATS = 4 if ON_GPU else 1

CONTROLS = {
    "item": lambda t: t.item(),
    "tolist": lambda t: t.tolist(),
    "bool": lambda t: bool(t),
    "if": lambda t: 1 if t else 0,
    "float": lambda t: float(t),
    "int": lambda t: int(t),
    "index": lambda t: [1, 2][t.long()],
    "cpu": lambda t: t.cpu(),
    "numpy": lambda t: t.numpy(),
    "asarray": lambda t: np.asarray(t),
    "to": lambda t: t.to("cpu"),
    "to-device": lambda t: t.to(torch.device("cpu")),
    "to-keyword": lambda t: t.to(device="cpu"),
    "nonzero": lambda t: t.reshape(1).nonzero(),
    "equal": lambda t: torch.equal(t, t),
    "contains": lambda t: 1.0 in t.reshape(1),
    "mask": lambda t: torch.masked_select(t, t == t),
}


@pytest.fixture(autouse=True)
def backend():
    """Triton's launches are what is counted here."""
    with use_backend("triton"):
        yield "triton"


@pytest.mark.parametrize("read", CONTROLS.values(), ids=CONTROLS)
def test_the_guard_catches(read):
    with pytest.raises(HostSynchronizationError), no_host_sync():
        read(torch.zeros(()))


@pytest.mark.skipif(not ON_GPU, reason="CUDA itself raises")
def test_the_guard_catches_what_no_function_shows(device):
    numbers = torch.zeros(3, device=device)
    with pytest.raises(RuntimeError, match="synchroniz"), no_host_sync():
        numbers[numbers == 0.0]


def test_the_guard_allows_what_stays_on_the_device():
    with no_host_sync():
        x = torch.zeros(3)
        x.add_(1.0)
        x = x.to(torch.float64)
    assert x.tolist() == [1.0] * 3


def test_the_guard_is_gone_afterwards():
    with pytest.raises(HostSynchronizationError), no_host_sync():
        torch.zeros(()).item()
    assert torch.zeros(()).item() == 0.0


OPTIONS = {
    "plain": {},
    "clip": {"max_norm": 1.0},
    "skip": {"skip_nonfinite": True},
    "both": {"max_norm": 0.1, "skip_nonfinite": True},
}


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", [fv.optim.AdamW])
def test_step(make, options, grads, device):
    store = store_of(device=device, grads=grads)
    optimizer = make(store, **options)
    set_grads(store)
    optimizer.step()  # lays out tables, reads step counts once, compiles
    before = store.values.clone()
    with no_host_sync():
        for _ in range(REPEATS):
            set_grads(store)
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.equal(store.values, before)


def test_new_gradients_new_numbers_and_a_missing_one(device):
    store = store_of(dtypes=(torch.float32, torch.bfloat16), device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0, skip_nonfinite=True)
    set_grads(store)
    optimizer.step()
    set_grads(store)
    store["v1"].param.grad = None
    kept = store["v1"].value.clone()
    optimizer.param_groups[0]["lr"] = 0.5
    with no_host_sync():
        optimizer.step()
    assert_same_bits(store["v1"].value, kept)


def test_new_numbers_and_addresses(device):
    """Uploads come from page-locked memory, which nobody waits for."""
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    set_grads(store)
    optimizer.step()
    kept = []
    with no_host_sync():
        for k in range(REPEATS):
            kept.append(set_grads(store))
            optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
            optimizer.step()
    assert store["v0"].value.isfinite().all()


@pytest.mark.skipif(not ON_GPU, reason="a number on the CPU is read, and nobody waits")
def test_learning_rate_in_a_device_tensor(device):
    store = store_of([(8,)], device=device)
    lr = torch.tensor(0.5, device=device)
    optimizer = fv.optim.SGD(store, lr=lr)
    store["v0"].param.grad = torch.ones(8, device=device)
    optimizer.step()
    before = store["v0"].value.clone()
    with no_host_sync():
        lr.fill_(2.0)
        optimizer.step()
    assert torch.equal(store["v0"].value, before - 2.0)


def test_whole_training_loop(device):
    model = Net().to(device)
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.AdamW(store, max_norm=1.0, skip_nonfinite=True)

    def train(micro):
        backward(model, micro)
        store.accumulate()
        optimizer.step()
        optimizer.zero_grad()

    data = [batch(device) for _ in range(2 + REPEATS)]
    for micro in data[:2]:
        train(micro)
    with no_host_sync():
        for micro in data[2:]:
            train(micro)
    assert optimizer.skipped.item() == 0


def test_accumulate_norms_and_zero(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    grads = set_grads(store)
    optimizer.step()
    store.accumulate(grads)
    optimizer.step()
    with no_host_sync():
        store.accumulate(grads, scale=0.5)
        store.accumulate(grads, scale=0.5)
        norm = store.grad_norm()
        norms = store.norms()
        optimizer.step()
        optimizer.zero_grad()
    assert norm.item() > 0.0
    assert norms["v0"][1].item() > 0.0


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_masked(options, grads, device):
    store = store_of(device=device, grads=grads)
    optimizer = fv.optim.AdamW(store, **options)
    store.set_trainable_mask("v1", torch.arange(2060, device=device) % 2 == 0)
    set_grads(store)
    store.clip_grad_norm_(1.0)
    optimizer.step()
    before = store["v1"].value.clone()
    set_grads(store)
    with no_host_sync():
        store.accumulate()
        store.clip_grad_norm_(1.0)
        optimizer.step()
    assert_same_bits(store["v1"].value[1::2], before[1::2])
    assert not torch.equal(store["v1"].value[::2], before[::2])


def test_a_skipped_step_is_not_looked_at(device):
    store = store_of(device=device)
    optimizer = fv.optim.AdamW(store, skip_nonfinite=True)
    set_grads(store)
    optimizer.step()
    set_grads(store, scale=torch.nan)
    with no_host_sync():
        optimizer.step()
    assert optimizer.skipped.item() == 1
