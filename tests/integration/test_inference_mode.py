"""What a store does inside `torch.inference_mode()` leaves tensors that training may go on with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import flatvars as fv

Call = Callable[[nn.Module, fv.VarStore, fv.optim.AdamW, Path], object]
CALLS: dict[str, Call] = {
    "freeze and compact": lambda module, store, optimizer, path: (
        store.freeze("0.*"),
        store.compact(),
        store.unfreeze(),
    ),
    "another dtype": lambda module, store, optimizer, path: (store.double(), store.float()),
    "a module more": lambda module, store, optimizer, path: store.add_module(copy.deepcopy(module), "late"),
    "a mask": lambda module, store, optimizer, path: store.set_trainable_mask("1.weight", torch.eye(3) > 0),
    "norms": lambda module, store, optimizer, path: (store.grad_norm(), store.norms()),
    "a file": lambda module, store, optimizer, path: (store.save(path, optimizer), store.load(path, optimizer)),
    "state dicts": lambda module, store, optimizer, path: optimizer.load_state_dict(optimizer.state_dict()),
    "a snapshot": lambda module, store, optimizer, path: store.restore(store.snapshot(optimizer)),
    "shared memory": lambda module, store, optimizer, path: store.share_memory_(),
}


def backward(module: nn.Module) -> None:
    module(torch.ones(2, 3)).square().mean().backward()


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_a_model_adopted_inside_trains(grads: str) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.inference_mode():
        store = fv.VarStore.from_module(module, grads=grads)
        optimizer = fv.optim.AdamW(store, max_norm=1.0)
    before = store.ravel()
    backward(module)
    optimizer.step()
    optimizer.zero_grad()
    assert not torch.equal(before, store.ravel())
    assert not module[0].weight.is_inference()


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_a_model_made_inside_trains(grads: str) -> None:
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    kept = list(module.parameters())
    store = fv.VarStore.from_module(module, grads=grads)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    backward(module)
    before = store.ravel()
    optimizer.step()
    optimizer.zero_grad()
    assert not torch.equal(before, store.ravel())
    assert all(a is b for a, b in zip(module.parameters(), kept, strict=True))


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize("call", CALLS)
def test_training_goes_on_after_a_call_inside(grads: str, call: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    store = fv.VarStore.from_module(module, grads=grads)
    optimizer = fv.optim.AdamW(store, max_norm=1.0)
    backward(module)
    optimizer.step()
    backward(module)
    with torch.inference_mode():
        CALLS[call](module, store, optimizer, tmp_path / "file.safetensors")
    backward(module)
    before = store.ravel()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert not torch.equal(before, store.ravel())
    for param in module.parameters():
        assert not param.is_inference()
        optimizer.state[param]["step"].zero_()
