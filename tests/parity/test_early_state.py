"""State that is set before a variable's first step: stepped on, copied, saved, and given back, as with torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

NAMES = ["Adagrad", "NAdam", "ASGD", "Rprop", "AdamW", "RMSprop"]


def made(name: str) -> tuple[nn.Parameter, fv.VarStore, Any]:
    param, store = nn.Parameter(torch.ones(3)), fv.VarStore()
    store.add("p", param)
    return param, store, getattr(fv.optim, name)([param], store=store, lr=0.1)


def early(name: str) -> tuple[nn.Parameter, Any]:
    """torch's, with a state that took no step."""
    param = nn.Parameter(torch.ones(3))
    optimizer = getattr(torch.optim, name)([param], lr=0.1)
    param.grad = torch.full((3,), 2.0)
    optimizer.step()
    optimizer.state[param]["step"].zero_()
    with torch.no_grad():
        param.fill_(1.0)
    return param, optimizer


def deepcopied(param: nn.Parameter, store: fv.VarStore, optimizer: Any, name: str, folder: Path) -> Any:
    return copy.deepcopy((param, store, optimizer))


def saved(param: nn.Parameter, store: fv.VarStore, optimizer: Any, name: str, folder: Path) -> Any:
    store.save(folder / "file.safetensors", optimizer)
    other = made(name)
    other[1].load(folder / "file.safetensors", other[2])
    return other


def pickled(param: nn.Parameter, store: fv.VarStore, optimizer: Any, name: str, folder: Path) -> Any:
    return pickle.loads(pickle.dumps((param, store, optimizer)))


def rolled_back(param: nn.Parameter, store: fv.VarStore, optimizer: Any, name: str, folder: Path) -> Any:
    snapshot = store.snapshot(optimizer)
    optimizer.state.clear()
    param.grad = torch.ones(3)
    optimizer.step()
    store.restore(snapshot)
    return param, store, optimizer


def kept(param: nn.Parameter, store: fv.VarStore, optimizer: Any, name: str, folder: Path) -> Any:
    return param, store, optimizer


def loaded(param: nn.Parameter, store: fv.VarStore, optimizer: Any, name: str, folder: Path) -> Any:
    other = made(name)
    other[2].load_state_dict(optimizer.state_dict())
    other[0].data.copy_(param)
    return other


@pytest.mark.parametrize("way", [deepcopied, saved, loaded])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_not_lost(name: str, way: Callable[..., Any], tmp_path: Path) -> None:
    twin, theirs = early(name)
    ours = made(name)
    ours[2].load_state_dict(theirs.state_dict())
    param, _, optimizer = way(*ours, name, tmp_path)
    for one in (param, twin):
        one.grad = torch.tensor([1.0, -2.0, 0.5])
    optimizer.step()
    theirs.step()
    torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-7)


def zero(step: torch.Tensor) -> None:
    step.zero_()


def zero_data(step: torch.Tensor) -> None:
    step.data.zero_()


WAYS = [kept, deepcopied, pickled, saved, rolled_back, loaded]


@pytest.mark.parametrize(("way", "reset"), [*((way, zero) for way in WAYS), (saved, zero_data)])
@pytest.mark.parametrize("name", ["AdamW", "NAdam", "Rprop"])
def test_a_count_that_was_made_zero_in_place_is_that_of_a_state(
    name: str, way: Callable[..., Any], reset: Callable[..., None], tmp_path: Path
) -> None:
    """All else of the state stays: nothing begins anew, and no copy or file leaves it out."""
    twin = nn.Parameter(torch.ones(3))
    theirs = getattr(torch.optim, name)([twin], lr=0.1)
    ours = made(name)
    for one, optimizer in ((twin, theirs), (ours[0], ours[2])):
        for _ in range(2):
            one.grad = torch.full((3,), 2.0)
            optimizer.step()
        reset(optimizer.state[one]["step"])
    param, _, mine = way(*ours, name, tmp_path)
    assert set(mine.state[param]) == set(theirs.state[twin])
    assert mine.state[param]["step"].item() == 0.0
    for one, optimizer in ((twin, theirs), (param, mine)):
        one.grad = torch.tensor([1.0, -2.0, 0.5])
        optimizer.step()
    torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["gather", "views"])
def test_an_edit_in_place_before_the_first_step_is_stepped_on(mode: str) -> None:
    module, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    ours = fv.optim.Adagrad(fv.VarStore.from_module(module, grads=mode), lr=1.0)
    theirs = torch.optim.Adagrad(twin.parameters(), lr=1.0)
    for each, optimizer in ((module, ours), (twin, theirs)):
        optimizer.state[each.weight]["sum"].fill_(99.0)
        each(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(module.weight, twin.weight)
    assert torch.equal(ours.state[module.weight]["sum"], torch.full((2, 3), 100.0))
