"""Checkpoints on either backend: step counts, state and an unfinished cycle come back, and the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import flatvars as fv
from tests.support.stores import Net, backward, batch


def start(device: torch.device | str, seed: int) -> tuple[Net, fv.VarStore, fv.optim.AdamW]:
    torch.manual_seed(seed)
    net = Net()
    store = fv.VarStore.from_module(net, device=device)
    return net, store, fv.optim.AdamW(store, lr=1e-2, max_norm=0.5, skip_nonfinite=True)


def work(net: Net, store: fv.VarStore, optimizer: Any, data: list[Any], steps: range) -> None:
    """Two micro-batches a step."""
    for i in steps:
        backward(net, data[i])
        store.accumulate(scale=0.5)
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(("way", "half"), [("file", 3), ("snapshot", 3), ("file", 4)], ids=str)
def test_a_resumed_run_is_the_same_run(device: torch.device | str, half: int, way: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    data = [batch(device) for _ in range(6)]
    net, store, optimizer = start(device, 0)
    work(net, store, optimizer, data, range(half))
    if way == "file":
        store.save(tmp_path / "model.safetensors", optimizer)
        work(net, store, optimizer, data, range(half, 6))
        resumed = start(device, 7)
        resumed[1].load(tmp_path / "model.safetensors", resumed[2])
        work(*resumed, data, range(half, 6))
        values, again = store.values, resumed[1].values
        state, other = optimizer.state_dict(), resumed[2].state_dict()
    else:
        snapshot = store.snapshot(optimizer)
        work(net, store, optimizer, data, range(half, 6))
        values, state = store.values.clone(), repr(optimizer.state_dict())
        store.restore(snapshot)
        work(net, store, optimizer, data, range(half, 6))
        again, state, other = store.values, state, repr(optimizer.state_dict())
    assert torch.equal(values, again)
    assert repr(state) == repr(other)


def test_a_norm_before_the_step_comes_back(device: torch.device | str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    data = batch(device)
    net, store, optimizer = start(device, 0)
    backward(net, data)
    store.accumulate()
    store.save(tmp_path / "model.safetensors", optimizer)
    other = start(device, 5)
    other[1].load(tmp_path / "model.safetensors", other[2])
    assert torch.equal(store.grad_norm(), other[1].grad_norm())
    optimizer.step()
    other[2].step()
    assert torch.equal(store.values, other[1].values)
