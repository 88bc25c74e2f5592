"""VarStore by itself: what it holds, what it answers, how it grows and moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False))


def test_parameters_are_views_of_one_buffer_in_creation_order() -> None:
    model = small_model()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    store = fv.VarStore.from_module(model)
    assert list(store) == list(expected) == list(store.variables())
    start, stop = store.values.data_ptr(), store.values.data_ptr() + store.values.nbytes
    for name, value in expected.items():
        variable = store[name]
        assert start <= variable.param.data_ptr() < stop
        assert torch.equal(variable.value, value)
        assert variable.param.data_ptr() % 128 == start % 128


def test_a_store_answers_like_a_collection() -> None:
    store = fv.VarStore.from_module(small_model())
    assert len(store) == 5
    assert "0.weight" in store
    assert "9.weight" not in store
    assert store["0.bias"].name == "0.bias"
    assert [v.id for v in store.trainable_variables()] == list(range(5))
    with pytest.raises(fv.UnknownNameError, match=r"no variable '9\.weight'"):
        store["9.weight"]


def test_an_empty_store_works() -> None:
    store = fv.VarStore()
    store.check()
    assert len(store) == 0
    assert float(store.grad_norm()) == 0.0
    assert "0 variables" in store.summary()


def test_summary_names_every_variable_and_the_bytes() -> None:
    store = fv.VarStore.from_module(small_model())
    text = store.summary()
    assert all(name in text for name in store)
    assert f"{store.values.nbytes:,} bytes" in text


def test_repr_of_a_variable_says_what_it_is() -> None:
    store = fv.VarStore.from_module(small_model())
    assert repr(store["0.bias"]) == "Variable('0.bias', id=1, torch.float32, (5,), requires_grad, grad=none)"


def test_mixed_dtypes_have_a_region_each_and_no_single_buffer() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).bfloat16())
    store = fv.VarStore.from_module(model)
    assert [region.dtype for region in store.regions] == [torch.float32, torch.bfloat16]
    with pytest.raises(fv.FlatvarsError, match="2 regions"):
        _ = store.values
    assert store.values_of(torch.bfloat16).dtype == torch.bfloat16
    store.check()


def test_freeze_and_unfreeze_by_pattern() -> None:
    store = fv.VarStore.from_module(small_model())
    store["0.weight"].param.grad = torch.ones(5, 3)
    store.freeze("0.*")
    assert [v.name for v in store.trainable_variables() if v.requires_grad] == ["1.weight", "1.bias", "2.weight"]
    assert store["0.weight"].grad is None
    store.unfreeze()
    assert len(store.trainable_variables()) == 5
    with pytest.raises(fv.UnknownNameError, match="matches none"):
        store.freeze("decoder.*")


def test_unfreeze_leaves_what_was_frozen_before_alone() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    store = fv.VarStore.from_module(model)
    store.freeze("1.*")
    store.unfreeze()
    assert not store["0.weight"].requires_grad
    store.unfreeze("0.weight")
    assert store["0.weight"].requires_grad
    store.check()


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_conversions_take_handles_values_and_gradients_along(convert: str) -> None:
    model = small_model()
    store = fv.VarStore.from_module(model)
    before = {name: v.value.clone() for name, v in store.variables().items()}
    model[0].weight.grad = torch.ones(5, 3)
    getattr(store, convert)()
    dtype = model[0].weight.dtype
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.dtype == dtype
    assert all(torch.equal(v.value, before[name].to(dtype)) for name, v in store.variables().items())
    store.check()


def test_check_finds_padding_that_is_not_zero() -> None:
    store = fv.VarStore.from_module(nn.Linear(3, 1))
    store.values[3] = 1.0
    with pytest.raises(fv.FlatvarsError, match="padding"):
        store.check()


def test_grads_is_truthful_before_and_after_a_cycle() -> None:
    model = nn.Linear(3, 2)
    store = fv.VarStore.from_module(model)
    assert not store.grads.any()
    model(torch.ones(1, 3)).sum().backward()
    assert store.grads.sum() == 3 * 2 + 2
    store.zero_grad()
    assert not store.grads.any()


def test_variable_grad_is_an_option() -> None:
    model = nn.Linear(3, 2)
    store = fv.VarStore.from_module(model)
    assert store["weight"].grad is None
    store.accumulate({"weight": torch.zeros(2, 3)})
    assert torch.equal(store["weight"].grad, torch.zeros(2, 3))
    assert store["bias"].grad is None


def test_accumulate_refuses_what_it_cannot_place() -> None:
    store = fv.VarStore.from_module(nn.Linear(3, 2))
    with pytest.raises(fv.UnknownNameError, match="does not hold"):
        store.accumulate({"wait": torch.zeros(2)})
    with pytest.raises(fv.GradientError, match="1 gradients were given for 2"):
        store.accumulate([torch.zeros(2, 3)])
    with pytest.raises(fv.GradientError, match=r"'weight' has shape \(3, 2\)"):
        store.accumulate({"weight": torch.zeros(3, 2)})
    assert store["weight"].grad is None
