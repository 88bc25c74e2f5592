"""zero_grad in all its forms, and no zero_grad at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import flatvars as fv
from tests.support.models import Bag, Chain

from .pairs import MODES, Pair

SHAPES = {"a": (2,), "b": (3, 3), "c": (), "d": (70_000,)}
CALLERS: dict[str, Callable[[Pair, bool], None]] = {
    "optimizer": lambda pair, none: pair.opt.zero_grad(set_to_none=none),
    "module": lambda pair, none: pair.ours.zero_grad(set_to_none=none),
    "store": lambda pair, none: pair.store.zero_grad(set_to_none=none),
}


@pytest.mark.row("P-G-04", "P-X-03")
@pytest.mark.parametrize("none", [True, False], ids=["to-none", "to-zero"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adamw"])
def test_zero_grad_between_steps(optimizer: str, mode: str, caller: str, none: bool) -> None:
    """Variables lack a gradient in some steps: after set_to_none=False theirs is zero, and zero decays weights."""
    pair = Pair.of(Bag(SHAPES), optimizer, mode)
    generator = torch.Generator().manual_seed(1)
    for skip in ((), ("a", "d"), ("b",), ("c",), ()):
        pair.backward(generator, skip)
        pair.step()
        CALLERS[caller](pair, none)
        pair.ref.zero_grad(set_to_none=none)
    pair.assert_values_close()
    pair.assert_states_close()


NEVER = [(mode, caller) for mode in MODES for caller in CALLERS if (mode, caller) != ("views", "module")]


@pytest.mark.parametrize(("mode", "caller"), NEVER)
def test_to_zero_is_none_where_there_never_was_a_gradient(mode: str, caller: str) -> None:
    pair = Pair.of(Bag(SHAPES), "adamw", mode)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        pair.backward(generator, skip={"a", "d"})
        pair.step()
        CALLERS[caller](pair, False)
        pair.ref.zero_grad(set_to_none=False)
    assert pair.opt.state[pair.ours.a] == {}
    pair.assert_values_close()


def test_a_module_writes_zeros_into_every_view() -> None:
    """It cannot tell a view that autograd wrote from one that it did not: those variables have a gradient of zero."""
    pair = Pair.of(Bag(SHAPES), "adamw", "views")
    generator = torch.Generator().manual_seed(1)
    pair.ours.zero_grad(set_to_none=False)
    for param in pair.theirs.parameters():
        param.grad = torch.zeros_like(param)
    pair.backward(generator, skip={"a", "d"})
    pair.step()
    assert pair.opt.state[pair.ours.a]["step"] == 1
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_without_zero_grad_gradients_add_up(optimizer: str, mode: str) -> None:
    pair = Pair.of(Bag(SHAPES), optimizer, mode)
    generator = torch.Generator().manual_seed(1)
    for skip in ((), ("a", "d"), ("b",), ()):
        pair.backward(generator, skip)
        pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_a_second_step_uses_the_same_gradients(mode: str) -> None:
    pair = Pair.of(Bag(SHAPES), "adamw", mode)
    pair.backward(torch.Generator().manual_seed(1), skip={"b"})
    for _ in range(3):
        pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_gradients_read_as_torch_leaves_them(mode: str) -> None:
    pair = Pair.of(Bag(SHAPES), "sgd", mode)
    pair.zero_grad()
    pair.backward(torch.Generator().manual_seed(1), skip={"b"})
    for name, param in pair.theirs.named_parameters():
        grad = pair.store[name].grad
        assert grad is None if param.grad is None else torch.equal(grad, param.grad)
    pair.store.zero_grad()
    assert all(variable.grad is None for variable in pair.store.variables().values())
    assert pair.store.grads.abs().sum().item() == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_an_optimizer_zeroes_its_own_parameters_only(mode: str) -> None:
    """Two optimizers over one store, as for a generator and its critic."""
    module = Chain(depth=2)
    store = fv.VarStore.from_module(module, grads=mode)
    first = fv.optim.SGD([*module.layers[0].parameters()], lr=0.1)
    module(torch.ones(1, 4)).sum().backward()
    kept = store["layers.1.weight"].grad.clone()
    first.zero_grad()
    assert store["layers.0.weight"].grad is None
    assert torch.equal(store["layers.1.weight"].grad, kept)
