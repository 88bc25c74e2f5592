"""The alias guard, for all who ask it: replaced buffers, frozen Parameters and submodules."""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import flatvars as fv

from .training import adopted, backward


def saved(store: fv.VarStore, folder: Path) -> dict[str, torch.Tensor]:
    store.save(folder / "file.safetensors")
    return load_file(folder / "file.safetensors")


def snapshot(store: fv.VarStore, folder: Path) -> dict[str, torch.Tensor]:
    taken = store.snapshot()
    taken.save(folder / "file.safetensors")
    taken.wait()
    return load_file(folder / "file.safetensors")


def cloned(store: fv.VarStore, folder: Path) -> dict[str, torch.Tensor]:
    return {name: variable.value for name, variable in store.clone().variables().items()}


def copied(store: fv.VarStore, folder: Path) -> dict[str, torch.Tensor]:
    other = store.clone()
    for variable in other.variables().values():
        variable.value.zero_()
    return {name: variable.value for name, variable in other.copy_(store).variables().items()}


READERS: dict[str, Callable[[fv.VarStore, Path], dict[str, torch.Tensor]]] = {
    "save": saved,
    "snapshot": snapshot,
    "clone": cloned,
    "copy_": copied,
    "ravel": lambda store, folder: store.unravel(store.ravel()),
}
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


# Buffers ------------------------------------------------------------------------------------------------------------


@pytest.mark.row("P-R-09")
@each_reader
def test_a_replaced_buffer_is_read_fresh_and_taken_in(
    read: Callable[[fv.VarStore, Path], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module, buffers=True)
    opt = fv.optim.SGD(store, lr=0.1)
    for step in (1.0, 2.0):
        module.running_mean = module.running_mean + 5.0
        module(torch.ones(2, 2)).sum().backward()
        opt.step()  # never stops for a buffer
        module.running_mean = torch.full((2,), step)
        assert torch.equal(read(store, tmp_path)["running_mean"], torch.full((2,), step))
        assert torch.equal(store["running_mean"].value, torch.full((2,), step))
        module.running_mean.add_(1.0)
        assert torch.equal(store["running_mean"].value, torch.full((2,), step + 1.0))
    store.check()


def test_taking_a_buffer_in_makes_no_plan_anew() -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module, buffers=True)
    generation = store.registry.generation
    module.running_mean = torch.ones(2)
    store.check()
    assert store.registry.generation == generation


KINDS: dict[str, Callable[[nn.Module], torch.Tensor]] = {
    "view": lambda module: torch.full((3, 2), 7.0)[1],
    "expanded": lambda module: torch.full((1,), 7.0).expand(2),
    "result": lambda module: module.weight * 7.0,
    "inference": lambda module: torch.inference_mode()(lambda: torch.full((2,), 7.0))(),
    "of-a-variable": lambda module: module.bias.detach().add_(7.0),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_any_dense_tensor_may_replace_a_buffer(make: Callable[[nn.Module], torch.Tensor]) -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module, buffers=True)
    module.running_mean = make(module)
    store.check()
    assert torch.equal(store["running_mean"].value, torch.full((2,), 7.0))
    assert store["running_mean"].value.data_ptr() == module.running_mean.data_ptr()
    store["bias"].value.zero_()
    assert torch.equal(module.running_mean, torch.full((2,), 7.0))


def test_a_buffer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module, buffers=True)
    module.running_mean = torch.ones(3)
    with pytest.raises(fv.AliasError, match=r"'running_mean' is no longer used: BatchNorm1d\.running_mean.*buffer"):
        store.save(tmp_path / "file.safetensors")


def test_a_buffer_whose_memory_was_replaced_is_taken_in(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module, buffers=True)
    module.running_mean.data = torch.full((2,), 3.0)
    assert torch.equal(saved(store, tmp_path)["running_mean"], torch.full((2,), 3.0))
    assert store["running_mean"].param is module.running_mean


def test_a_carve_takes_a_replaced_buffer_in() -> None:
    module = nn.BatchNorm1d(2)
    store = fv.VarStore.from_module(module, buffers=True)
    module.running_mean.data = torch.full((2,), 3.0)
    store.double()
    assert torch.equal(module.running_mean, torch.full((2,), 3.0, dtype=torch.float64))
    store.check()


# Parameters ---------------------------------------------------------------------------------------------------------


@each_reader
@pytest.mark.parametrize("freeze", ["before", "store", "flag"])
def test_a_replaced_frozen_parameter_is_not_read_stale(
    read: Callable[[fv.VarStore, Path], dict[str, torch.Tensor]], freeze: str, tmp_path: Path
) -> None:
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(freeze != "before")
    store = fv.VarStore.from_module(module)
    if freeze == "store":
        store.freeze("weight")
    module.weight.requires_grad_(False)
    module.weight = nn.Parameter(torch.ones(2, 3), requires_grad=False)
    with pytest.raises(fv.AliasError, match=r"'weight' is no longer used.*rebind"):
        read(store, tmp_path)
    assert store.rebind() == ["weight"]
    assert torch.equal(read(store, tmp_path)["weight"], torch.ones(2, 3))


def test_what_was_reparametrized_away_may_be_frozen(tmp_path: Path) -> None:
    module, store, opt = adopted()
    nn.utils.parametrizations.weight_norm(module)
    with pytest.raises(fv.AliasError, match=r"not a parameter any more.*store\.freeze\('weight'\)"):
        store.save(tmp_path / "file.safetensors")
    store.freeze("weight")
    for name, param in module.parametrizations.weight.named_parameters():
        store.add(f"weight.{name}", param)
    before = module.weight.detach().clone()
    backward(module)
    opt.step()
    assert not torch.equal(module.weight.detach(), before)
    assert "weight.original0" in saved(store, tmp_path)


def test_a_tied_place_that_came_apart_is_named() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    opt = fv.optim.SGD(fv.VarStore.from_module(module), lr=0.1)
    module[1].weight = nn.Parameter(torch.ones(3, 3))
    module(torch.ones(1, 3)).sum().backward()
    with pytest.raises(fv.AliasError, match=r"'0\.weight' is no longer used: Linear\.weight holds another Parameter"):
        opt.step()


# Submodules ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        return self.head(x) if hasattr(self, "head") else x


def net(steps: int = 1) -> tuple[Net, fv.VarStore, fv.optim.SGD]:
    module = Net()
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    for _ in range(steps):
        train(module, opt)
    return module, store, opt


def train(module: nn.Module, opt: torch.optim.Optimizer) -> None:
    opt.zero_grad()
    module(torch.ones(1, 3)).square().sum().backward()
    opt.step()


@pytest.mark.row("P-R-04")
@pytest.mark.parametrize("steps", [0, 1], ids=["before-the-first-step", "later"])
@pytest.mark.parametrize("kept", [True, False], ids=["old-kept", "old-gone"])
def test_a_new_head_does_not_stay_untrained_silently(steps: int, kept: bool, tmp_path: Path) -> None:
    module, store, opt = net(steps)
    old = module.head if kept else None
    module.head = nn.Linear(3, 2)
    with pytest.raises(fv.AliasError, match=r"'head\.weight' is no longer used.*rebind"):
        train(module, opt)
    with pytest.raises(fv.AliasError, match=r"'head\.weight' is no longer used.*rebind"):
        store.save(tmp_path / "file.safetensors")
    assert store.rebind() == ["head.weight", "head.bias"]
    before = module.head.weight.detach().clone()
    train(module, opt)
    assert not torch.equal(module.head.weight.detach(), before)
    assert torch.equal(saved(store, tmp_path)["head.weight"], module.head.weight.detach())
    assert old is None or old.weight.data_ptr() != module.head.weight.data_ptr()


def test_a_new_head_of_another_kind_is_named_and_taken_in_beside(tmp_path: Path) -> None:
    module, store, opt = net()
    module.head = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    message = r"'head\.weight' is no longer used: its module 'head' was replaced by a Sequential.*0\.weight, 0\.bias"
    with pytest.raises(fv.AliasError, match=message):
        train(module, opt)
    store.freeze("head.*")
    store.add_module(module.head, "new_head")
    before = module.head[0].weight.detach().clone()
    train(module, opt)
    assert not torch.equal(module.head[0].weight.detach(), before)
    saved(store, tmp_path)


def test_wrapped_modules_train_on_and_are_followed() -> None:
    module, store, opt = net()
    module.head = nn.Sequential(module.head, nn.ReLU())
    module.body, inner = nn.Sequential(), module.body
    module.body.add_module("inner", inner)
    train(module, opt)
    assert [place.path for place in store["head.weight"].places] == [("head", "0")]
    assert [place.path for place in store["body.0.weight"].places] == [("body", "inner", "0")]
    module.head[0] = nn.Linear(3, 2)
    with pytest.raises(fv.AliasError, match=r"'head\.weight' is no longer used"):
        train(module, opt)


REMOVALS: dict[str, Callable[[Net], object]] = {
    "deleted": lambda module: delattr(module, "head"),
    "identity": lambda module: setattr(module, "head", nn.Identity()),
    "bias": lambda module: setattr(module.head, "bias", None),
}


@pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)
def test_what_is_taken_out_on_purpose_stops_nothing(remove: Callable[[Net], object], tmp_path: Path) -> None:
    module, store, opt = net()
    remove(module)
    before = module.body[0].weight.detach().clone()
    train(module, opt)
    assert not torch.equal(module.body[0].weight.detach(), before)
    saved(store, tmp_path)


def test_a_head_that_comes_after_a_removed_one_is_noticed() -> None:
    module, _, opt = net()
    del module.head
    train(module, opt)
    module.head = nn.Linear(3, 2)
    with pytest.raises(fv.AliasError, match=r"'head\.weight' is no longer used"):
        train(module, opt)


def test_a_child_that_outlives_its_parent_trains_on() -> None:
    module, _, opt = net()
    body = module.body
    del module
    before = body[0].weight.detach().clone()
    train(body, opt)
    assert not torch.equal(body[0].weight.detach(), before)


def test_nothing_keeps_a_module_that_was_replaced() -> None:
    module, store, opt = net()
    gone = weakref.ref(module.head)
    store.check()
    module.head = nn.Identity()
    gc.collect()
    assert gone() is None
    train(module, opt)


@pytest.mark.parametrize("mode", ["gather", "views"])
def test_an_adopted_child_that_was_replaced_in_a_parent_nobody_adopted(mode: str) -> None:
    module = Net()
    store = fv.VarStore.from_module(module.head, grads=mode)
    opt = fv.optim.SGD(store, lr=0.1)
    train(module, opt)
    module.head = nn.Linear(3, 2)
    gc.collect()
    module(torch.ones(1, 3)).sum().backward()
    opt.zero_grad()
    for _ in range(2):
        with pytest.raises(fv.AliasError, match=r"no variable has a gradient, 'weight' among them"):
            opt.step()
    assert store.remove("*") == ["weight", "bias"]
    store.add_module(module.head)
    before = module.head.weight.detach().clone()
    train(module, opt)
    assert not torch.equal(module.head.weight.detach(), before)


@pytest.mark.parametrize("mode", ["gather", "views"])
def test_parameters_whose_module_is_gone_may_be_used_without_it(mode: str) -> None:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.SGD(store, lr=0.1)
    params = dict(module.named_parameters())
    del module
    gc.collect()
    for _ in range(2):
        before = params["weight"].detach().clone()
        torch.func.functional_call(nn.Linear(3, 2, device="meta"), params, torch.ones(1, 3)).sum().backward()
        opt.step()
        opt.zero_grad()
        assert not torch.equal(params["weight"].detach(), before)


@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("leave", [True, False], ids=["with-the-function", "original"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrization_that_is_removed_leaves_the_parameter_trained(when: str, leave: bool, mode: str) -> None:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module, grads=mode) if when == "after" else None
    nn.utils.parametrize.register_parametrization(module, "weight", nn.Tanh())
    store = fv.VarStore.from_module(module, grads=mode) if store is None else store
    opt = fv.optim.SGD(store, lr=0.1)
    train(module, opt)
    nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=leave)
    before = module.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)
        train(module, opt)
    assert not torch.equal(module.weight.detach(), before)
    store.check()


@pytest.mark.parametrize("mode", ["gather", "views"])
def test_modules_without_dicts_train(mode: str) -> None:
    """Scripted and traced ones keep their parameters in C++."""
    for make in (torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 3))):
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            module = make(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
        store = fv.VarStore.from_module(module, grads=mode)
        opt = fv.optim.SGD(store, lr=0.1)
        before = store["0.weight"].value.clone()
        train(module, opt)
        assert not torch.equal(store["0.weight"].value, before)
        store.check()


# Cost ---------------------------------------------------------------------------------------------------------------


def test_a_guard_in_order_runs_no_python_for_each_variable() -> None:
    """Loops in C alone: the number of Python calls does not grow with the variables."""
    counts = []
    for layers in (2, 40):
        store = fv.VarStore.from_module(nn.Sequential(*[nn.Linear(2, 2) for _ in range(layers)]))
        guard = store.registry.guard
        guard.check_values()
        counts.append(calls_of(guard.check_values))
    assert counts[0] == counts[1] < 10


def calls_of(function: Callable[[], object]) -> int:
    count = 0

    def on_event(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count
