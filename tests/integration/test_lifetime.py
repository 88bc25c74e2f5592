"""How long things live: a store as long as its module, and everything only as long as somebody holds it."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import ResNet, TiedLanguageModel

from .training import backward, linear

MODES = ("gather", "views")


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """What is in a cycle would live until the next collection, which on a GPU is an error for want of memory."""
    gc.disable()
    yield
    gc.enable()


def freed(reference: weakref.ref[Any]) -> bool:
    return reference() is None


def memory_of(store: fv.VarStore) -> list[weakref.ref[torch.UntypedStorage]]:
    """References to the memory of every stream: alive as long as any view of it."""
    return [weakref.ref(held.buffer.untyped_storage()) for held in store.registry.streams._streams.values()]


@pytest.mark.parametrize("mode", MODES)
def test_an_optimizer_finds_the_store_by_the_parameters(mode: str) -> None:
    module = linear()
    fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(module.parameters(), lr=0.1)
    before = module.weight.detach().clone()
    for step in range(3):
        backward(module)
        opt.step()
        opt.zero_grad()
        assert opt.state[module.weight]["step"] == step + 1
    assert not torch.equal(module.weight, before)


def test_a_child_keeps_the_store_when_its_parent_is_gone() -> None:
    parent = nn.Sequential(linear(), nn.Linear(2, 2))
    fv.VarStore.from_module(parent)
    child = parent[0]
    del parent
    opt = fv.optim.SGD(child.parameters(), lr=0.1)
    before = child.weight.detach().clone()
    backward(child)
    opt.step()
    assert not torch.equal(child.weight, before)


def test_a_store_trains_on_when_its_module_is_gone() -> None:
    module = linear()
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=1.0)
    del module
    store.accumulate({"weight": torch.ones(2, 3)})
    before = store["weight"].value.clone()
    opt.step()
    assert torch.equal(store["weight"].value, before - 1.0)
    store.check()


USES: dict[str, Callable[[Any, Any, Any], object]] = {
    "nothing": lambda module, store, opt: None,
    "steps": lambda module, store, opt: run(module, opt, 2),
    "accumulate": lambda module, store, opt: (backward(module), store.accumulate(), opt.step()),
    "norms": lambda module, store, opt: (backward(module), store.norms(), store.clip_grad_norm_(1.0)),
    "grads": lambda module, store, opt: (backward(module), store.grads, store["weight"].grad),
    "state": lambda module, store, opt: (run(module, opt, 1), opt.state[module.weight], opt.state_dict()),
    "masks": lambda module, store, opt: (
        run(module, opt, 1),
        store.freeze("bias"),
        store.compact(),
        run(module, opt, 1),
    ),
    "growth": lambda module, store, opt: (run(module, opt, 1), store.add("later", torch.ones(3)), run(module, opt, 1)),
    "conversion": lambda module, store, opt: (run(module, opt, 1), store.double(), run(module, opt, 1)),
    "rebind": lambda module, store, opt: (run(module, opt, 1), module.double(), store.rebind(), run(module, opt, 1)),
    "error": lambda module, store, opt: refused(module, store, opt),
    "scheduler": lambda module, store, opt: scheduled(module, opt),
    "looked-at": lambda module, store, opt: (repr(store), store.summary(), repr(opt), store.check()),
}


def run(module: nn.Module, opt: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        backward(module)
        opt.step()
        opt.zero_grad()


def scheduled(module: nn.Module, opt: torch.optim.Optimizer) -> None:
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1)
    run(module, opt, 1)
    scheduler.step()


def refused(module: nn.Linear, store: fv.VarStore, opt: torch.optim.Optimizer) -> None:
    kept = module.weight.data
    module.weight.data = torch.ones(2, 3).share_memory_()  # not followed: others may use it
    backward(module)
    try:
        opt.step()
    except fv.AliasError:
        module.weight.data = kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_nothing_is_left_without_the_collector(use: Callable[[Any, Any, Any], object], mode: str) -> None:
    module = linear()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.1, max_norm=1.0)
    use(module, store, opt)
    references = [weakref.ref(item) for item in (module, store, store.registry, opt)]
    memory = memory_of(store)
    assert not any(map(freed, memory))
    del module, store, opt
    assert [reference() for reference in references] == [None] * 4
    assert all(map(freed, memory))


@pytest.mark.parametrize("order", list(itertools.permutations(["module", "store", "optimizer"])), ids=", ".join)
@pytest.mark.parametrize("mode", MODES)
def test_in_any_order(mode: str, order: tuple[str, ...]) -> None:
    held: dict[str, Any] = {"module": linear()}
    held["store"] = fv.VarStore.from_module(held["module"], grads=mode)
    held["optimizer"] = fv.optim.AdamW(held["store"], lr=0.1)
    run(held["module"], held["optimizer"], 2)
    memory = memory_of(held["store"])
    for name in order:
        assert not freed(memory[0]), "while one of them lives, the values do"
        del held[name]
    assert all(map(freed, memory))


@pytest.mark.parametrize("make", [TiedLanguageModel, ResNet, lambda: nn.LSTM(3, 2)], ids=["tied", "buffers", "lstm"])
def test_other_modules_leave_nothing_either(make: Callable[[], nn.Module]) -> None:
    module = make()
    store = fv.VarStore.from_module(module, buffers=True)
    memory = memory_of(store)
    del module, store
    assert all(map(freed, memory))


def test_an_optimizer_that_is_gone_takes_its_state_along() -> None:
    module = linear()
    store = fv.VarStore.from_module(module)
    before = store.registry.streams.nbytes
    opt = fv.optim.AdamW(store, lr=0.1)
    run(module, opt, 1)
    assert store.registry.streams.nbytes == 3 * before
    del opt
    assert store.registry.streams.nbytes == before


CYCLES: dict[str, Callable[[nn.Module, fv.VarStore, torch.optim.Optimizer], object]] = {
    "hook": lambda module, store, opt: module.weight.register_hook(lambda grad, module=module: grad),
    "attribute": lambda module, store, opt: setattr(module.weight, "owner", module),
    "store-in-hook": lambda module, store, opt: module.weight.register_hook(lambda grad, store=store: grad),
    "optimizer-in-hook": lambda module, store, opt: module.weight.register_hook(lambda grad, opt=opt: grad),
}


@pytest.mark.parametrize("used", ["adopted", "stepped", "saved"])
@pytest.mark.parametrize("tie", CYCLES.values(), ids=CYCLES)
def test_what_hangs_on_a_parameter_keeps_nothing_for_ever(
    tie: Callable[[nn.Module, fv.VarStore, torch.optim.Optimizer], object], used: str, tmp_path: Path
) -> None:
    """A cycle through Parameters is Python's to collect: no table of the library holds a part of it."""
    module = linear()
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    tie(module, store, opt)
    if used != "adopted":
        run(module, opt, 2)
    if used == "saved":
        store.save(tmp_path / "file.safetensors", opt)
        store.snapshot(opt).save(tmp_path / "other.safetensors", wait=True)
    references = [weakref.ref(item) for item in (module, store.registry, opt)]
    del module, store, opt
    gc.collect()
    assert [freed(reference) for reference in references] == [True, True, True]


def test_copies_leave_behind_what_keeps_the_store(tmp_path: Path) -> None:
    module = linear()
    fv.VarStore.from_module(module)
    torch.save(module, tmp_path / "module.pt")
    for other in (copy.deepcopy(module), torch.load(tmp_path / "module.pt", weights_only=False)):
        assert [value for value in vars(other).values() if type(value).__module__.startswith("flatvars")] == []
    with torch.serialization.safe_globals([nn.Linear]):
        torch.load(tmp_path / "module.pt", weights_only=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("averaged", [False, True], ids=["", "averaged"])
def test_a_carve_gives_back_what_steps_used(averaged: bool, mode: str) -> None:
    """At once, and not with the next step: there may be no room for both."""
    module = linear()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.1, max_norm=1.0)
    if averaged:
        fv.EMA(opt, decay=0.9)
    for take in (opt.step, store.accumulate):
        backward(module)
        take()
    opt.zero_grad()
    old = memory_of(store)
    store.add("more", torch.zeros(30))
    assert len(store.values) > 0  # carves
    assert all(map(freed, old))
