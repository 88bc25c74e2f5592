"""Frozen variables: no gradient or state bytes; unfreezing carves room and keeps everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import assert_same, states, values

MODES = ("gather", "views")
# Multiples of every alignment: no byte of padding, so that bytes can be counted.
WIDTH = 64
WEIGHT = WIDTH * WIDTH * 4
LAYERS = 4


def layers(frozen: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(LAYERS)))
    module[:frozen].requires_grad_(False)
    return module


def train(module: nn.Module, opt: torch.optim.Optimizer, steps: int) -> None:
    dtype = next(module.parameters()).dtype
    for _ in range(steps):
        opt.zero_grad()
        module(torch.ones(2, WIDTH, dtype=dtype)).square().sum().backward()
        opt.step()


def nbytes(store: fv.VarStore) -> int:
    return store.registry.streams.nbytes


@pytest.mark.parametrize("frozen", range(LAYERS + 1))
def test_frozen_variables_have_values_and_nothing_else(frozen: int) -> None:
    module = layers(frozen)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.AdamW(store, lr=0.01)
    assert nbytes(store) == LAYERS * WEIGHT
    if frozen < LAYERS:
        train(module, opt, 2)
    trained = LAYERS - frozen
    assert nbytes(store) == (LAYERS + 2 * trained) * WEIGHT
    store.accumulate()
    if trained:
        store.grads  # noqa: B018
    assert nbytes(store) == (LAYERS + 3 * trained) * WEIGHT


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("make", "streams"),
    [
        (lambda store: fv.optim.SGD(store, lr=0.01), 0),
        (lambda store: fv.optim.SGD(store, lr=0.01, momentum=0.9), 1),
        (lambda store: fv.optim.Lion(store, lr=0.01), 1),
        (lambda store: fv.optim.AdamW(store, lr=0.01), 2),
        (lambda store: fv.optim.AdamW(store, lr=0.01, amsgrad=True), 3),
    ],
    ids=["sgd", "momentum", "lion", "adamw", "amsgrad"],
)
def test_bytes_of_every_optimizer(make: Callable[[fv.VarStore], Any], streams: int, mode: str) -> None:
    module = layers(frozen=1)
    store = fv.VarStore.from_module(module, grads=mode)
    opt = make(store)
    train(module, opt, 2)
    gradients = 1 if mode == "views" else 0
    assert nbytes(store) == LAYERS * WEIGHT + (LAYERS - 1) * (streams + gradients) * WEIGHT


def test_float32_accumulation_and_state_of_bfloat16_variables() -> None:
    module = layers(frozen=2, dtype=torch.bfloat16)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.AdamW(store, lr=0.01, state_dtype=torch.float32)
    train(module, opt, 1)
    store.accumulate()
    assert nbytes(store) == LAYERS * WEIGHT // 2 + 3 * 2 * WEIGHT


@pytest.mark.parametrize("mode", MODES)
def test_freeze_then_compact_gives_bytes_back(mode: str) -> None:
    module = layers()
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.01)
    train(module, opt, 2)
    before, full = states(opt), nbytes(store)
    store.freeze(["0.*", "1.*"])
    assert nbytes(store) == full
    assert_same(states(opt), before)
    store.compact()
    streams = 3 if mode == "views" else 2
    assert full - nbytes(store) == 2 * streams * WEIGHT
    assert opt.state[module[0].weight] == {}
    assert_same({key: value for key, value in before.items() if key[0] > 1}, states(opt))
    train(module, opt, 1)
    assert opt.state[module[2].weight]["step"] == 3
    store.check()


def test_compact_without_frozen_variables_changes_nothing() -> None:
    module = layers()
    store = fv.VarStore.from_module(module)
    opt = fv.optim.AdamW(store, lr=0.01)
    train(module, opt, 2)
    before, before_states, size = values(module), states(opt), nbytes(store)
    store.compact()
    assert nbytes(store) == size
    assert_same(values(module), before)
    assert_same(states(opt), before_states)


@pytest.mark.parametrize("how", ["store", "torch"])
@pytest.mark.parametrize("mode", MODES)
def test_unfreezing_keeps_everything(mode: str, how: str) -> None:
    module = layers(frozen=2)
    store = fv.VarStore.from_module(module, grads=mode)
    opt = fv.optim.AdamW(store, lr=0.01)
    train(module, opt, 3)
    params, before, before_states = list(module.parameters()), values(module), states(opt)
    grads = {name: store[name].grad.clone() for name in ("2.weight", "3.weight")}
    if how == "store":
        store.unfreeze("1.*")
    else:
        module[1].requires_grad_(True)
    assert all(left is right for left, right in zip(params, module.parameters(), strict=True))
    assert_same(values(module), before)
    assert_same(states(opt), before_states)
    assert_same({name: store[name].grad for name in grads}, grads)
    train(module, opt, 1)
    steps = [opt.state[layer.weight].get("step", 0) for layer in module]
    assert steps == [0, 1, 4, 4]
    assert nbytes(store) == LAYERS * WEIGHT + 3 * (2 + (mode == "views")) * WEIGHT
    store.check()


def test_freezing_drops_gradients_of_its_variables_alone() -> None:
    module = layers()
    store = fv.VarStore.from_module(module)
    module(torch.ones(2, WIDTH)).sum().backward()
    kept = store["3.weight"].grad.clone()
    store.accumulate()
    store.freeze("0.*")
    assert store["0.weight"].grad is None
    assert torch.equal(store["3.weight"].grad, kept)
    assert store.grad_norm().item() == pytest.approx(
        torch.nn.utils.get_total_norm([store[f"{i}.weight"].grad for i in (1, 2, 3)]).item(), rel=1e-5
    )


def test_a_second_optimizer_has_state_of_its_own_until_it_is_gone() -> None:
    module = layers()
    store = fv.VarStore.from_module(module)
    first, second = fv.optim.AdamW(store, lr=0.01), fv.optim.Lion(store, lr=0.01)
    train(module, first, 1)
    train(module, second, 1)
    assert nbytes(store) == LAYERS * (1 + 2 + 1) * WEIGHT
    del second
    assert nbytes(store) == LAYERS * (1 + 2) * WEIGHT
    before = states(first)
    store.add("later", torch.ones(WIDTH), trainable=False)
    assert_same(states(first), before)


def test_views_of_variables_that_were_frozen_during_a_carve_are_made_anew() -> None:
    """They pointed into the old stream, so that a gradient was lost without a word."""
    module = nn.Linear(2, 2)
    store = fv.VarStore.from_module(module, grads="views")
    store.freeze("bias")
    store.add("later", torch.ones(500))
    store.double()
    store.unfreeze()
    store.zero_grad()
    module(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    assert module.bias.grad is not None
    begin, end = store.grads.data_ptr(), store.grads.data_ptr() + store.grads.nbytes
    assert begin <= module.bias.grad.data_ptr() < end
    assert store["bias"].grad is not None
