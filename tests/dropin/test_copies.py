"""Stores and optimizers, copied deeply and pickled, alone and together with their module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.kernels.lang import tl  # noqa: F401  (a rule's file names `tl`)
from tests.integration.training import adopted, assert_same, backward, states, values
from tests.support.models import ResNet, TiedLanguageModel


@fv.optim.rule(states=("momentum",), hyper=("lr",))
def heavy(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    momentum = 0.5 * state[0] + g
    return p - hyper[0] * momentum, (momentum,)


def through_pickle(item: Any) -> Any:
    return pickle.loads(pickle.dumps(item))


def through_a_file(item: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(item, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "file": through_a_file}
each_way = pytest.mark.parametrize("duplicate", WAYS.values(), ids=WAYS)
each_mode = pytest.mark.parametrize("mode", ["gather", "views"])


def run(module: nn.Module, opt: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        backward(module)
        opt.step()
        opt.zero_grad()


@pytest.mark.row("P-A-11", "P-A-12")
@each_mode
@each_way
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=["module-first", "optimizer-first", "store"])
def test_all_three_train_on_bit_for_bit(order: tuple[int, ...], duplicate: Callable[[Any], Any], mode: str) -> None:
    items = adopted(mode, steps=2)
    twins = duplicate([items[i] for i in order])
    module, store, opt = (twins[order.index(i)] for i in range(3))
    assert store["weight"].param is module.weight is opt.param_groups[0]["params"][0]
    assert store.values.data_ptr() == module.weight.data_ptr() != items[1].values.data_ptr()
    assert_same(values(module), values(items[0]))
    assert_same(states(opt), states(items[2]))
    before = values(items[0])
    run(module, opt)
    assert_same(values(items[0]), before)
    run(items[0], items[2])
    assert_same(values(module), values(items[0]))
    assert_same(states(opt), states(items[2]))
    store.check()
    items[1].check()


@pytest.mark.row("P-A-11")
@each_way
def test_a_store_alone(duplicate: Callable[[Any], Any]) -> None:
    """Names, ids, values, masks, groups and what is declared later."""
    store = fv.VarStore(seed=3)
    store.root().set_group(2)
    store.root().zeros("a", (3, 2))
    store.root().set_group(0)
    store.root().ones("b", (5,))
    store.root().zeros_no_train("count", (2,))
    store.freeze("a")
    twin = duplicate(store)
    assert list(twin) == list(store)
    for name, variable in store.variables().items():
        other = twin[name]
        assert (other.id, other.group, other.spec) == (variable.id, variable.group, variable.spec)
        assert torch.equal(other.value, variable.value)
        assert other.requires_grad == variable.requires_grad
    twin.unfreeze()
    assert twin["a"].requires_grad
    assert not store["a"].requires_grad
    twin.root().ones("c", (4,))
    assert twin["c"].id == store["count"].id + 1
    assert "c" not in store
    twin.check()


@each_way
def test_ties_buffers_and_memory_orders(duplicate: Callable[[Any], Any]) -> None:
    tied = TiedLanguageModel()
    images = ResNet().to(memory_format=torch.channels_last)
    for module in (tied, images):
        store = fv.VarStore.from_module(module, buffers=True)
        twin, other = duplicate((module, store))
        assert_same(dict(twin.state_dict()), dict(module.state_dict()))
        for variable in store.variables().values():
            assert other[variable.name].names == variable.names
            assert other[variable.name].value.stride() == variable.value.stride()
        other.check()
        for name, buffer in twin.named_buffers():
            assert other[name].value.data_ptr() == buffer.data_ptr()
    assert duplicate((tied, fv.VarStore.from_module(TiedLanguageModel())))[0].head.weight is not tied.head.weight


@each_way
def test_attributes_of_a_parameter(duplicate: Callable[[Any], Any]) -> None:
    """As torch: pickle keeps them, deepcopy drops them."""
    module, _, _ = adopted()
    module.weight.tag = "x"
    assert hasattr(duplicate(module).weight, "tag") == (duplicate is not copy.deepcopy)


@each_way
def test_a_copied_optimizer_is_complete(duplicate: Callable[[Any], Any]) -> None:
    """Groups, options, a step count for each variable, state of its own dtype; hooks stay behind, as torch's do."""
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).bfloat16()
    store = fv.VarStore.from_module(module)
    groups = [{"params": "*.bias", "lr": 0.3}, {"params": "*"}]
    opt = fv.optim.AdamW(groups, store=store, lr=0.1, max_norm=0.5, state_dtype=torch.float32)
    torch.optim.lr_scheduler.StepLR(opt, 1)
    calls = []
    opt.register_step_post_hook(lambda *args: calls.append(1))
    for k in range(3):
        store["0.weight"].set_grad(torch.ones(2, 3))
        if k:
            store["1.bias"].set_grad(torch.ones(2))
        opt.step()
        opt.zero_grad()
    calls.clear()
    other_store, other = duplicate((store, opt))
    assert [g["lr"] for g in other.param_groups] == [0.3, 0.1]
    assert [len(g["params"]) for g in other.param_groups] == [2, 2]
    assert (other.max_norm, other.state_dtype) == (0.5, torch.float32)
    assert_same(states(other), states(opt))
    assert {v.dtype for v in states(other).values()} == {torch.float32}
    other_store["0.weight"].set_grad(torch.ones(2, 3))
    other.step()
    assert calls == []
    assert opt.state[module[0].weight]["step"] == 3
    assert other.state[other_store["0.weight"].param]["step"] == 4


@each_way
def test_an_optimizer_alone_brings_its_store(duplicate: Callable[[Any], Any]) -> None:
    """As torch's brings its parameters."""
    module, _, opt = adopted()
    twin = duplicate(opt)
    weight = twin.param_groups[0]["params"][0]
    before = weight.detach().clone()
    assert torch.equal(before, module.weight)
    weight.grad = torch.ones_like(weight)
    twin.step()
    assert not torch.equal(weight, before)
    assert torch.equal(module.weight, before)


@each_way
def test_a_rule_of_ones_own(duplicate: Callable[[Any], Any]) -> None:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    opt = fv.optim.RuleOptimizer(store, heavy, lr=0.1)
    run(module, opt, 2)
    twin, _, other = duplicate((module, store, opt))
    assert other.rule() is heavy
    run(module, opt, 2)
    run(twin, other, 2)
    assert_same(values(twin), values(module))


def test_a_rule_without_a_name_to_find_it_by() -> None:
    @fv.optim.rule(hyper=("lr",))
    def local(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        return p - hyper[0] * g, state

    store = fv.VarStore.from_module(nn.Linear(3, 2))
    opt = fv.optim.RuleOptimizer(store, local, lr=0.1)
    assert copy.deepcopy(opt).rule() is local
    with pytest.raises(pickle.PicklingError, match=r"top of a module"):
        pickle.dumps(opt)


def test_a_shallow_copy_of_an_optimizer_is_refused() -> None:
    _, store, opt = adopted()
    with pytest.raises(TypeError, match=r"deepcopy\(\(model, store, optimizer\)\)"):
        copy.copy(opt)
    assert copy.copy(store).values.data_ptr() == store.values.data_ptr()


@pytest.mark.row("P-R-04", "P-A-11")
def test_a_copied_store_notices_what_a_copied_module_loses() -> None:
    module, store, opt = copy.deepcopy(adopted())
    module.weight = nn.Parameter(torch.ones(2, 3))
    backward(module)
    with pytest.raises(fv.AliasError, match=r"store\.rebind\(\)"):
        opt.step()
    assert store.rebind() == ["weight"]
    opt.step()


def test_what_strayed_is_taken_back_and_copied() -> None:
    module, store, _ = adopted()
    module.double()
    with pytest.warns(fv.MovedWarning, match=r"'weight' and 1 more"):
        copy.deepcopy(store)
    assert copy.deepcopy(store)["weight"].dtype == torch.float64


@each_way
def test_pending_gradients_stay_behind(duplicate: Callable[[Any], Any]) -> None:
    module, store, opt = adopted()
    backward(module)
    grad = module.weight.grad.clone()
    twin: Tensor = duplicate((module, store, opt))[0].weight
    assert twin.grad is None
    assert torch.equal(module.weight.grad, grad)
