"""Parameters that no store or optimizer can take: said before anything has changed, with the call that helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import adopted, assert_same, backward, linear, values


def test_a_parameter_of_no_store_beside_those_of_one() -> None:
    """Where one was adopted by hand, its owner says what is in it; see `test_one_line.py` for those without any."""
    module, _, _ = adopted()
    stranger = nn.Parameter(torch.ones(4))
    with pytest.raises(fv.ForeignParameterError, match=r"shape \(4,\) lies in no store.*add_module"):
        fv.optim.SGD([*module.parameters(), stranger])


def test_parameters_of_two_stores() -> None:
    module, store, _ = adopted()
    other, _, _ = adopted()
    both = [*module.parameters(), *other.parameters()]
    for options in ({}, {"store": store}):
        with pytest.raises(
            fv.ForeignParameterError, match=r"in another store.*steps one:.*store\.add_module.*VarStore\.merge"
        ):
            fv.optim.SGD(both, **options)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "empty parameter list"),
        ([{"params": "weight"}], fv.ForeignParameterError, r"name patterns \('weight'\).*pass store="),
        ("weight", fv.ForeignParameterError, r"name patterns \('weight'\).*pass store="),
        (torch.ones(2), TypeError, "not Tensor"),
        (linear(), TypeError, r"a module \(Linear\).*parameters\(\)"),
    ],
    ids=["nothing", "patterns", "name", "tensor", "module"],
)
def test_params_that_say_no_store(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fv.optim.SGD(params)


def test_a_refused_optimizer_leaves_nothing_behind() -> None:
    module, store, opt = adopted()
    before = store.registry.streams.nbytes
    with pytest.raises(fv.ForeignParameterError):
        fv.optim.AdamW([*module.parameters(), nn.Parameter(torch.ones(1))])
    assert store.registry.streams.nbytes == before
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 2


@pytest.mark.parametrize("again", ["from_module", "add_module", "parent", "parameter", "same-store"])
def test_a_module_belongs_to_one_store(again: str) -> None:
    """A store that holds nothing else gives it up (`test_leaving.py`); this one does."""
    module, store, opt = adopted()
    store.add("more", torch.ones(3))
    opt.step()
    before, address = values(module), module.weight.data_ptr()
    other = fv.VarStore()
    calls: dict[str, Callable[[], object]] = {
        "from_module": lambda: fv.VarStore.from_module(module),
        "add_module": lambda: other.add_module(module),
        "parent": lambda: fv.VarStore.from_module(nn.Sequential(nn.Linear(2, 2), module)),
        "parameter": lambda: other.add("again", module.weight),
        "same-store": lambda: store.add_module(module, "again"),
    }
    with pytest.raises(fv.SpecError, match=r"belongs to a store already, as 'weight'.*deepcopy"):
        calls[again]()
    assert len(other) == 0
    assert module.weight.data_ptr() == address
    assert_same(values(module), before)
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 2


def sharing(make: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    module = nn.Module()
    module.first = nn.Parameter(torch.arange(12.0).view(3, 4))
    module.second = nn.Parameter(make(module.first.data))
    return module


SHARING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda data: data,
    "transposed": lambda data: data.t(),
    "row": lambda data: data[1],
    "last-element": lambda data: data.flatten()[11:],
}


@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING)
def test_two_parameters_that_share_memory(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module = sharing(make)
    with pytest.raises(
        fv.SpecError, match=r"'(first|second)' and '(first|second)' share memory.*one Parameter to both"
    ):
        fv.VarStore.from_module(module)
    assert module.first.untyped_storage().data_ptr() == module.second.untyped_storage().data_ptr()


def test_neighbors_in_one_buffer_are_taken() -> None:
    """As another library's flat buffer, or a file that was read in one piece."""
    flat = torch.arange(12.0)
    module = nn.Module()
    module.first, module.empty, module.second = (
        nn.Parameter(part) for part in (flat[:4].view(2, 2), flat[4:4], flat[4:])
    )
    before = values(module)
    store = fv.VarStore.from_module(module)
    store.check()
    assert_same(values(module), before)
    module.first.data.zero_()
    assert flat.sum() == 66.0


BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), r"'weight' is torch\.complex64.*view_as_real"),
    "sparse": (
        lambda: holding(nn.Parameter(torch.eye(2).to_sparse())),
        r"'held' is torch\.sparse_coo.*only dense tensors",
    ),
    "subclass": (
        lambda: holding(nn.Parameter(torch.ones(2).as_subclass(Marked))),
        r"'held' holds a Marked, a tensor subclass.*adopt plain tensors",
    ),
}


class Marked(torch.Tensor):
    """A tensor subclass, as quantization libraries and DTensor have them."""


def holding(param: nn.Parameter) -> nn.Module:
    module = nn.Module()
    module.held = param
    return module


@pytest.mark.row("P-X-02")
@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_parameters_that_cannot_be_held(make: Callable[[], nn.Module], message: str) -> None:
    module = nn.Sequential()
    module.add_module("good", linear())
    module.add_module("bad", make())
    address = module.good.weight.data_ptr()
    store = fv.VarStore()
    with pytest.raises(fv.SpecError, match=message.replace("'", "'bad.", 1)):
        store.add_module(module)
    assert len(store) == 0
    assert module.good.weight.data_ptr() == address
    fv.VarStore.from_module(module.good).check()


def test_a_lazy_module_after_its_first_pass() -> None:
    module = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    module(torch.ones(3, 5))
    store = fv.VarStore.from_module(module, buffers=True)
    assert store["0.weight"].shape == (2, 5)
    store.check()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("", torch.ones(1), "empty part.*dotted path"),
        ("a..b", torch.ones(1), "empty part.*dotted path"),
        ("count", torch.arange(3), r"torch\.int64 and cannot be trained.*trainable=False"),
        ("wave", torch.ones(2, dtype=torch.complex64), "complex64.*view_as_real"),
        ("lazy", nn.UninitializedParameter(), "lazy parameter without a shape.*adopt its module"),
    ],
    ids=["no-name", "hole-in-name", "integer", "complex", "lazy"],
)
def test_variables_that_cannot_be_added(name: str, tensor: torch.Tensor, message: str) -> None:
    _, store, _ = adopted()
    with pytest.raises(fv.SpecError, match=message):
        store.add(name, tensor)
    assert len(store) == 2
    store.check()
