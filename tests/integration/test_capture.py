"""Modules that are built inside `store.capture()` are adopted when it ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import ResNet, TiedLanguageModel

from .training import assert_same, backward, linear, values


def test_one_root_keeps_its_names() -> None:
    store = fv.VarStore()
    with store.capture():
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ModuleDict({"head": nn.Linear(4, 2)}))
    assert list(store) == [name for name, _ in model.named_parameters()]
    assert list(store) == ["0.weight", "0.bias", "2.head.weight", "2.head.bias"]
    assert store["2.head.bias"].param is model[2]["head"].bias
    store.check()


def test_several_roots_are_numbered() -> None:
    store = fv.VarStore()
    with store.capture():
        encoder = nn.Linear(3, 4)
        decoder = nn.Sequential(nn.Linear(4, 2, bias=False))
    assert list(store) == ["0.weight", "0.bias", "1.0.weight"]
    assert store["0.weight"].param is encoder.weight
    assert store["1.0.weight"].param is decoder[0].weight


@pytest.mark.parametrize(
    ("roots", "names"), [(1, ["net.weight", "net.bias"]), (2, ["net.0.weight", "net.0.bias", "net.1.weight"])]
)
def test_a_prefix(roots: int, names: list[str]) -> None:
    store = fv.VarStore()
    with store.capture("net"):
        kept = [nn.Linear(2, 2, bias=i == 0) for i in range(roots)]
    assert list(store) == names
    assert len(kept) == roots


def test_capturing_again_adds() -> None:
    store = fv.VarStore()
    with store.capture("first"):
        first = linear()
    before = values(first)
    with store.capture("second"):
        second = linear()
    assert list(store) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert_same(values(first), before)
    assert_same(values(second), before)


def test_captured_is_as_adopted() -> None:
    torch.manual_seed(3)
    expected = ResNet()
    store = fv.VarStore()
    torch.manual_seed(3)
    with store.capture(buffers=True):
        model = ResNet()
    twin = fv.VarStore.from_module(expected, buffers=True)
    assert list(store) == list(twin)
    assert_same(dict(model.state_dict()), dict(expected.state_dict()))
    assert torch.equal(store.values_of(torch.float32), twin.values_of(torch.float32))


def test_what_is_captured_trains() -> None:
    store = fv.VarStore()
    with store.capture():
        model = linear()
    opt = fv.optim.AdamW(model.parameters(), lr=0.1)
    before = values(model)
    backward(model)
    opt.step()
    assert not torch.equal(model.weight, before["weight"])
    assert store["weight"].norm().item() == pytest.approx(model.weight.norm().item())


def test_ties_that_are_made_inside() -> None:
    store = fv.VarStore()
    with store.capture():
        model = TiedLanguageModel()
    assert store["head.weight"] is store["embed.weight"]
    assert len(store) == len(list(model.parameters()))


def test_a_module_from_the_meta_device() -> None:
    store = fv.VarStore()
    with store.capture():
        model = nn.Linear(3, 2, device="meta")
    assert model.weight.device == torch.device("cpu")
    assert model.weight.any()
    store.check()


def test_a_child_that_was_built_before_belongs_to_its_parent() -> None:
    child = linear()
    store = fv.VarStore()
    with store.capture():
        model = nn.Sequential(child, nn.Linear(2, 1))
    assert list(store) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert store["0.weight"].param is child.weight is model[0].weight


def test_nothing_is_adopted_after_an_error() -> None:
    store = fv.VarStore()
    kept = []

    def build() -> None:
        with store.capture():
            kept.append(linear())
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        build()
    assert len(store) == 0
    fv.VarStore.from_module(kept[0]).check()


def test_modules_built_later_are_free() -> None:
    store = fv.VarStore()
    with store.capture():
        first = linear()
    later = nn.Sequential(linear())
    assert list(store) == ["weight", "bias"]
    fv.VarStore.from_module(later).check()
    store.check()
    assert first.weight.data_ptr() != later[0].weight.data_ptr()


def test_modules_without_parameters_take_no_part() -> None:
    store = fv.VarStore()
    with store.capture():
        activation = nn.ReLU()
    assert len(store) == 0
    assert activation(torch.tensor(-1.0)) == 0
