"""None is not zero: a variable without a gradient, or frozen, keeps every bit of value, state and count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.models import MIXTURE, Bag, Chain
from tests.support.tolerances import assert_same_bits

from .pairs import MODES, OPTIMIZERS, Pair

SMALL = {"a": (2,), "b": (3,), "c": (), "d": (5, 2), "e": (70_000,), "f": (2, 2)}
STATEFUL = ["sgd-dampening", "adam-decay", "adamw-amsgrad", "lion-decay"]


def snapshot(pair: Pair, name: str) -> dict[str, Any]:
    """Copies of a variable's value and state."""
    param = pair.store[name].param
    return {"value": param.detach().clone(), **{k: v.clone() for k, v in pair.opt.state[param].items()}}


def assert_unchanged(pair: Pair, name: str, before: dict[str, Any]) -> None:
    after = snapshot(pair, name)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert_same_bits(after[key], value)


@pytest.mark.row("P-G-05")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_gradient_leaves_every_bit(optimizer: str, mode: str) -> None:
    pair = Pair.of(Bag(SMALL), optimizer, mode)
    pair.run(3)
    before = {name: snapshot(pair, name) for name in ("b", "e")}
    pair.run(2, seed=2, skip=lambda step: {"b", "e"})
    for name, state in before.items():
        assert_unchanged(pair, name, state)
    pair.run(3, seed=3)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", STATEFUL)
def test_a_step_without_any_gradient_changes_nothing(optimizer: str, mode: str) -> None:
    pair = Pair.of(Bag(SMALL), optimizer, mode)
    pair.run(2)
    before = {name: snapshot(pair, name) for name in SMALL}
    pair.run(2, skip=lambda step: SMALL)
    for name, state in before.items():
        assert_unchanged(pair, name, state)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", STATEFUL)
def test_frozen_from_the_start(optimizer: str, mode: str) -> None:
    module = Bag(MIXTURE)
    module.row.requires_grad_(False)
    module.matrix.requires_grad_(False)
    pair = Pair.of(module, optimizer, mode)
    frozen = {name: module.get_parameter(name).detach().clone() for name in ("row", "matrix")}
    pair.run(4)
    for name, value in frozen.items():
        assert_same_bits(module.get_parameter(name).detach(), value)
        assert pair.opt.state[module.get_parameter(name)] == {}
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("how", ["store", "torch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", STATEFUL)
def test_frozen_midway_between_trained_neighbors(optimizer: str, mode: str, how: str) -> None:
    pair = Pair.of(Bag(SMALL), optimizer, mode)
    pair.run(3)
    pair.zero_grad()
    flip(pair, ("b", "c", "e"), how, on=False)
    before = {name: snapshot(pair, name) for name in ("b", "c", "e")}
    pair.run(4, seed=2)
    for name, state in before.items():
        assert_unchanged(pair, name, state)
    flip(pair, ("b", "c", "e"), how, on=True)
    pair.run(4, seed=3)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("how", ["store", "torch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", STATEFUL)
def test_unfrozen_for_the_first_time_midway(optimizer: str, mode: str, how: str) -> None:
    module = Bag(SMALL)
    for name in ("a", "c", "e"):
        module.get_parameter(name).requires_grad_(False)
    pair = Pair.of(module, optimizer, mode)
    pair.run(3)
    pair.zero_grad()
    flip(pair, ("c", "e"), how, on=True)
    pair.run(3, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", STATEFUL)
def test_an_optimizer_over_some_variables_leaves_those_between_alone(optimizer: str, mode: str) -> None:
    module = Bag(SMALL)
    pair = Pair.of(module, mode=mode)
    our_class, their_class, arguments = OPTIMIZERS[optimizer]
    chosen = ("a", "c", "d", "f")
    pair.opt = our_class([module.get_parameter(name) for name in chosen], **arguments)
    pair.ref = their_class([pair.theirs.get_parameter(name) for name in chosen], **arguments)
    between = {name: module.get_parameter(name).detach().clone() for name in ("b", "e")}
    pair.run(3)
    for name, value in between.items():
        assert_same_bits(module.get_parameter(name).detach(), value)
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_layers_that_a_forward_pass_skips(mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode)

    def loss(module: Any) -> Tensor:
        return module(torch.ones(2, 4)).square().sum()

    for active in ([0, 1, 2], [0, 2], [2], [1, 0]):
        pair.ours.active = pair.theirs.active = active
        pair.zero_grad()
        pair.both(loss)
        pair.step()
    counts = {name: state["step"].item() for name, state in named_states(pair).items()}
    assert counts == {f"layers.{i}.{k}": n for i, n in enumerate([3.0, 2.0, 3.0]) for k in ("weight", "bias")}
    pair.assert_values_close()


def named_states(pair: Pair) -> dict[str, dict[str, Any]]:
    return {name: pair.opt.state[param] for name, param in pair.ours.named_parameters()}


def flip(pair: Pair, names: tuple[str, ...], how: str, on: bool) -> None:
    """Freezes or unfreezes in both twins; ours by the store or by plain torch."""
    for name in names:
        theirs = pair.theirs.get_parameter(name)
        theirs.requires_grad_(on)
        theirs.grad = None
        if how == "torch":
            pair.ours.get_parameter(name).requires_grad_(on)
    if how == "store":
        (pair.store.unfreeze if on else pair.store.freeze)(names)


@pytest.mark.row("P-G-06")
@pytest.mark.parametrize("steps", [0, 1], ids=["before-the-first-step", "later"])
@pytest.mark.parametrize("mode", MODES)
def test_a_stale_gradient_of_a_frozen_variable_is_used_as_by_torch(mode: str, steps: int) -> None:
    """Plain `requires_grad_(False)` leaves `.grad`, and torch.optim asks only for that; `store.freeze` drops it."""
    pair = Pair.of(Chain(), "sgd", mode)
    for step in range(steps + 1):
        pair.zero_grad()
        pair.both(lambda net: net(torch.ones(2, 4)).sum())
        if step == steps:
            for module in (pair.ours, pair.theirs):
                module.layers[1].weight.requires_grad_(False)
        pair.step()
    assert pair.ours.layers[1].weight.grad is not None
    pair.assert_values_close()
