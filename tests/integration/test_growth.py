"""Variables added later: the buffers grow, and everything that was there stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.parity.pairs import Pair
from tests.support.models import Bag

from .training import assert_same, states, values

SHAPES = {"a": (2,), "b": (3, 3), "c": (), "d": (66_000,)}
MODES = ("gather", "views")

WAYS: dict[str, Callable[[fv.VarStore], nn.Parameter]] = {
    "tensor": lambda store: store.add("later", torch.arange(5.0)),
    "parameter": lambda store: store.add("later", nn.Parameter(torch.arange(5.0))),
    "frozen": lambda store: store.add("later", torch.arange(5.0), trainable=False),
    "other-dtype": lambda store: store.add("later", torch.arange(5.0, dtype=torch.float64)),
    "module": lambda store: added_module(store).weight,
}


def added_module(store: fv.VarStore) -> nn.Linear:
    module = nn.Linear(5, 1, bias=False)
    nn.init.constant_(module.weight, 2.0)
    store.add_module(module, "later")
    return module


def trained(mode: str, steps: int = 3) -> Pair:
    pair = Pair.of(Bag(SHAPES), "adamw", mode)
    pair.run(steps, skip=lambda step: ("c",))
    return pair


@pytest.mark.parametrize("add", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("mode", MODES)
def test_values_gradients_and_state_stay(mode: str, add: Callable[[fv.VarStore], nn.Parameter]) -> None:
    pair = trained(mode)
    params, before, before_states = list(pair.ours.parameters()), values(pair.ours), states(pair.opt)
    grads = {name: variable.grad.clone() for name, variable in pair.store.variables().items() if name != "c"}
    add(pair.store)
    assert all(left is right for left, right in zip(params, pair.ours.parameters(), strict=True))
    assert_same(values(pair.ours), before)
    assert_same(states(pair.opt), before_states)
    assert pair.store["c"].grad is None
    assert_same({name: pair.store[name].grad for name in grads}, grads)
    pair.store.check()
    pair.run(3, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
def test_a_new_variable_joins_the_training(mode: str) -> None:
    pair = trained(mode)
    pair.ours.later = pair.store.add("later", torch.arange(5.0))
    pair.theirs.later = nn.Parameter(torch.arange(5.0))
    assert pair.opt.state[pair.ours.later] == {}
    pair.ref.param_groups[0]["params"].append(pair.theirs.later)
    pair.run(3, seed=3)
    assert pair.opt.state[pair.ours.later]["step"] == 3
    pair.assert_values_close()
    pair.assert_states_close()


def test_a_cycle_of_micro_batches_goes_on() -> None:
    pair = trained("gather")
    pair.zero_grad()
    generator = torch.Generator().manual_seed(4)
    pair.backward(generator, skip={"a"})
    pair.store.accumulate()
    pair.store.add("later", torch.ones(40))
    pair.backward(generator, skip={"a", "b"})
    pair.store.accumulate()
    assert pair.store["a"].grad is None
    pair.step()
    pair.assert_values_close()
    pair.assert_states_close()


def test_many_modules_grow_one_store() -> None:
    store = fv.VarStore()
    modules = [nn.Linear(3, 3) for _ in range(5)]
    before = [values(module) for module in modules]
    for i, module in enumerate(modules):
        store.add_module(module, f"part.{i}")
    assert len(store) == 10
    assert list(store)[:2] == ["part.0.weight", "part.0.bias"]
    for module, kept in zip(modules, before, strict=True):
        assert_same(values(module), kept)
    flat, end = store.values.data_ptr(), store.values.data_ptr() + store.values.nbytes
    assert all(flat <= param.data_ptr() < end for module in modules for param in module.parameters())
    store.check()


def test_names_must_be_new() -> None:
    pair = trained("gather")
    with pytest.raises(fv.NameTakenError, match=r"'a' exists already.*another name.*prefix="):
        pair.store.add("a", torch.ones(2))
    clash = nn.Module()
    clash.fresh, clash.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    address = clash.fresh.data_ptr()
    with pytest.raises(fv.NameTakenError, match="'b' exists already"):
        pair.store.add_module(clash)
    assert clash.fresh.data_ptr() == address
    assert "fresh" not in pair.store
    pair.store.add_module(clash, "second")
    assert "second.b" in pair.store


def test_add_answers_with_the_parameter_it_binds() -> None:
    store = fv.VarStore()
    given = nn.Parameter(torch.ones(3))
    assert store.add("given", given) is given
    tensor = torch.full((2, 2), 5.0)
    made = store.add("made", tensor)
    assert isinstance(made, nn.Parameter)
    assert made.requires_grad
    assert store["made"].param is made
    tensor.zero_()
    assert made[0, 0] == 5.0
    assert not store.add("fixed", torch.ones(1), trainable=False).requires_grad


def test_handles_are_views_of_the_grown_buffer() -> None:
    store = fv.VarStore()
    first = store.add("first", torch.ones(3))
    old = store.values
    store.add("second", torch.ones(3))
    store["first"].value.mul_(2)
    assert first[0] == 2.0
    assert store.values.data_ptr() == first.data_ptr() != old.data_ptr()
    assert len(store.values) > len(old)


def test_the_forward_pass_before_growth_may_be_followed_by_its_backward_pass() -> None:
    """Moving a variable changes no value, so what autograd has saved still holds."""
    module, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(module.state_dict())
    store = fv.VarStore.from_module(module)
    losses = [net(net.weight.sum(0, keepdim=True)).square().sum() for net in (module, plain)]
    store.add("later", torch.ones(100))
    for loss in losses:
        loss.backward()
    assert torch.equal(module.weight.grad, plain.weight.grad)


def test_a_module_that_could_not_be_carved_is_not_in_the_store() -> None:
    """It stayed declared, so that its names were taken and every later look ran into the same refusal."""
    store = fv.VarStore.from_module(nn.Linear(3, 2))
    later = nn.Linear(2, 2)
    before, refusing = later.weight.clone(), [True]

    def refuse() -> None:
        if refusing.pop():
            raise fv.GradientError("not now")

    store.registry.before_carve.append(refuse)
    with pytest.raises(fv.GradientError, match="not now"):
        store.add_module(later, "later")
    assert list(store) == ["weight", "bias"]
    assert torch.equal(later.weight, before)
    refusing.append(False)
    store.add_module(later, "later")
    assert list(store) == ["weight", "bias", "later.weight", "later.bias"]
    assert torch.equal(store["later.weight"].value, before)
