"""Views: what is no gradient though it was written in place, and what is one though it lies elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import flatvars as fv
from tests.parity.pairs import MODES, Pair
from tests.support.models import Bag
from tests.support.tolerances import assert_same_bits

SHAPES = {"a": (3, 4), "b": (70,), "c": (), "e": (0, 3), "d": (4, 4)}

PASSES: dict[str, Callable[[Pair, list[Tensor]], Any]] = {
    "clip_grad_norm_": lambda pair, params: nn.utils.clip_grad_norm_(params, 0.5),
    "clip_grad_norm_, not foreach": lambda pair, params: nn.utils.clip_grad_norm_(params, 0.5, foreach=False),
    "clip_grad_value_": lambda pair, params: nn.utils.clip_grad_value_(params, 0.1),
    "mul_": lambda pair, params: [p.grad.mul_(0.5) for p in params if p.grad is not None],
    "div_": lambda pair, params: [p.grad.div_(3.0) for p in params if p.grad is not None],
    "foreach": lambda pair, params: torch._foreach_mul_([p.grad for p in params if p.grad is not None], 0.25),
    "nan_to_num_": lambda pair, params: [p.grad.nan_to_num_(nan=1.0) for p in params if p.grad is not None],
}


def half_backward(pair: Pair) -> None:
    """Every other variable gets a gradient."""
    pair.backward(torch.Generator().manual_seed(3), skip={"b", "c"})


@pytest.mark.parametrize("each", PASSES)
@pytest.mark.parametrize("optimizer", ["sgd-decay", "adamw"])
def test_passing_over_all_gradients_writes_none(optimizer: str, each: str) -> None:
    """Of the two that have none nothing moves: neither weight decay nor a step count."""
    pair = Pair.of(Bag(SHAPES), optimizer, "views")
    for _ in range(3):
        pair.zero_grad()
        half_backward(pair)
        for module in (pair.ours, pair.theirs):
            PASSES[each](pair, list(module.parameters()))
        pair.step()
    assert pair.store.gradient_names() == ["a", "e", "d"]
    assert pair.opt.state[pair.ours.b] == {}
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("each", ["norm", "value", "per_tensor"])
def test_the_stores_own_clipping(each: str, poison: float) -> None:
    pair = Pair.of(Bag(SHAPES), "sgd-decay", "views")
    half_backward(pair)
    pair.ours.a.grad[0, 0] = poison
    pair.store.clip_grad_value_(0.5) if each == "value" else pair.store.clip_grad_norm_(
        0.5, per_tensor=each == "per_tensor"
    )
    before = {name: pair.store[name].value.clone() for name in ("b", "c")}
    pair.step()
    assert pair.store.gradient_names() == ["a", "e", "d"]
    for name, value in before.items():
        assert_same_bits(pair.store[name].value, value)


def test_a_grad_scaler_unscales_in_place() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw", "views")
    for module, opt in ((pair.ours, pair.opt), (pair.theirs, pair.ref)):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        (scaler.scale(module.a.square().sum() + module.d.sum())).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
    assert pair.store.gradient_names() == ["a", "d"]
    pair.assert_values_close()
    pair.assert_states_close()


def test_zeros_are_a_gradient() -> None:
    """Of dead units, of rows that no token names, written by hand, or left by zero_grad(set_to_none=False)."""
    pair = Pair.of(Bag(SHAPES), "sgd-decay", "views")
    for module in (pair.ours, pair.theirs):
        (module.a * 0.0).sum().backward()
        module.b.grad = torch.zeros(70)
    assert pair.store.gradient_names() == ["a", "b"]
    pair.step()
    pair.assert_values_close()
    pair.opt.zero_grad(set_to_none=False)
    assert pair.store.gradient_names() == ["a", "b"]
    pair.opt.zero_grad()
    assert pair.store.gradient_names() == []


def test_swapped_gradients_are_both_there() -> None:
    pair = Pair.of(Bag({"a": (5,), "b": (5,), "c": (5,)}), "sgd", "views")
    pair.backward(torch.Generator().manual_seed(3), skip={"c"})
    for module in (pair.ours, pair.theirs):
        module.a.grad, module.b.grad = module.b.grad, module.a.grad
    assert torch.equal(pair.store["a"].grad, pair.theirs.a.grad)
    for module in (pair.ours, pair.theirs):
        module.a.grad, module.b.grad, module.c.grad = module.b.grad, module.a.grad, module.a.grad
    pair.step()
    pair.assert_values_close()
    for name, param in pair.theirs.named_parameters():
        assert torch.equal(pair.store[name].grad, param.grad)


def test_a_gradient_that_is_another_view_of_itself() -> None:
    pair = Pair.of(Bag({"a": (4, 4)}), "sgd", "views")
    pair.backward(torch.Generator().manual_seed(3))
    for module in (pair.ours, pair.theirs):
        module.a.grad = module.a.grad.t()
    pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("how", ["none", "assigned", "graph"])
def test_what_lies_elsewhere_is_dropped_by_zero_grad(how: str) -> None:
    pair = Pair.of(Bag(SHAPES), "sgd-decay", "views")
    for step in range(3):
        pair.zero_grad()
        half_backward(pair)
        for module in (pair.ours, pair.theirs):
            if how == "none":
                module.zero_grad()
            elif how == "assigned":
                module.a.grad = torch.full((3, 4), 1e3)
            else:
                module.a.grad = (module.a.grad + module.a).requires_grad_()
        if step % 2:
            pair.zero_grad()
        pair.step()
        if how == "graph":
            pair.theirs.a.grad = None if pair.theirs.a.grad is None else pair.theirs.a.grad.detach()
    pair.assert_values_close()


def test_two_optimizers_zero_their_own() -> None:
    module = Bag(SHAPES)
    store = fv.VarStore.from_module(module, grads="views")
    first, second = fv.optim.SGD([module.a, module.b], lr=0.1), fv.optim.SGD([module.c, module.e, module.d], lr=0.1)
    for _ in range(2):
        sum(p.sum() for p in module.parameters()).backward()
        first.step()
        first.zero_grad()
        assert store.gradient_names() == ["c", "e", "d"]
        second.step()
        second.zero_grad()
        assert store.gradient_names() == []


@pytest.mark.parametrize("event", ["add", "freeze", "double", "share", "rebind"])
def test_what_is_none_stays_none_through_a_carve(event: str) -> None:
    pair = Pair.of(Bag(SHAPES), "adamw", "views")
    half_backward(pair)
    expected = {name: param.grad for name, param in pair.theirs.named_parameters()}
    if event == "add":
        pair.store.add("late", torch.ones(3))
    elif event == "freeze":
        pair.store.freeze("b")
        pair.store.compact()
        pair.store.unfreeze("b")
    elif event == "double":
        pair.store.double()
    elif event == "share":
        swapped = pair.ours.a.grad.clone()
        pair.ours.a.grad = swapped  # lies elsewhere while the values move
        pair.store.share_memory_()
    else:
        pair.ours.d.data = pair.ours.d.data.clone()
        pair.store.rebind()
    for name, grad in expected.items():
        mine = pair.store[name].grad
        assert (mine is None) == (grad is None), name
        assert grad is None or torch.equal(mine.to(grad.dtype), grad)
    assert event != "add" or pair.store["late"].grad is None
    assert sorted(pair.store.gradient_names()) == ["a", "d", "e"]


def test_files_hold_open_gradients_alone() -> None:
    module = Bag(SHAPES)
    store = fv.VarStore.from_module(module, grads="views")
    opt = fv.optim.SGD(store, lr=0.1)

    def held() -> list[str]:
        image = store.snapshot(opt).image()
        assert image.training is not None
        return image.training.describe()["gradients"]["touched"]

    for _ in range(2):
        opt.zero_grad()
        assert held() == []
        (module.a.sum() + module.e.sum()).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        assert held() == ["a", "e"]
        opt.step()
        assert held() == []
    (module.b.sum()).backward()  # on top of what the step left
    assert held() == ["a", "b", "e"]


def test_a_strict_step_names_what_was_not_written() -> None:
    module = Bag(SHAPES)
    opt = fv.optim.SGD(fv.VarStore.from_module(module, grads="views"), lr=0.1)
    sum(p.sum() for p in (module.a, module.c, module.e, module.d)).backward()
    nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    with pytest.raises(fv.GradientError, match="'b'"):
        opt.step(strict=True)


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_distributed_checkpoints_make_the_state_of_a_new_optimizer(mode: str, zeroed: bool) -> None:
    """It steps with zeros, if it finds no `.grad`; training then goes on as with torch's optimizer."""
    pair = Pair.of(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "adamw", mode)
    if zeroed:
        pair.zero_grad()
    before = pair.store.values.clone()
    dicts = [get_optimizer_state_dict(m, o) for m, o in ((pair.ours, pair.opt), (pair.theirs, pair.ref))]
    assert dicts[0]["state"].keys() == dicts[1]["state"].keys()
    assert len(dicts[0]["state"]) == 4
    assert_same_bits(pair.store.values, before)
    assert pair.store.gradient_names() == []
    pair.run(2)
    pair.assert_values_close()
    pair.assert_states_close()


def test_bits_add_up_as_in_a_tensor_of_its_own() -> None:
    """Minus zero adds nothing, whatever comes: zeros of either sign, subnormals, infinities."""
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, 3.0, -1e38])
    module = Bag({"a": (8,)})
    plain = copy.deepcopy(module)
    fv.VarStore.from_module(module, grads="views")
    for factor in (1.0, -0.5, 2.0):
        for each in (module, plain):
            torch.autograd.backward([each.a], [odd * factor])
        assert_same_bits(module.a.grad, plain.a.grad)


def test_a_frozen_variable_has_no_gradient_through_carves() -> None:
    """Found by the machine: the second carve made zeros of its view, which counts as a gradient."""
    module = Bag(SHAPES)
    store = fv.VarStore.from_module(module, grads="views")
    store.freeze("b")
    for convert in (store.double, store.float, store.double):
        convert()
        assert store["b"].grad is None
    store.unfreeze("b")
    assert store["b"].grad is None
