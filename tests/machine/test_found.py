"""What the machine found, each as the shortest sequence that failed. Others stand beside what they are about."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import flatvars as fv


def test_state_dicts_know_variables_that_were_declared_later() -> None:
    store = fv.VarStore()
    store.root().ones("w", (2,))
    opt = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    later = store.root().ones("later", (3,))
    assert opt.state[later] == {}
    saved = opt.state_dict()
    assert saved["param_groups"][0]["params"] == [0, 1]
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["params"][1] is later


def test_an_empty_parameter_that_is_replaced_belongs_to_the_store() -> None:
    module = nn.ParameterDict({"weight": nn.Parameter(torch.empty(3, 0))})
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    module["weight"] = nn.Parameter(torch.empty(3, 0))
    store.rebind()
    assert store["weight"].param is module["weight"]
    assert opt.state[module["weight"]] == {}


@pytest.mark.parametrize("how", ["store", "module"])
def test_views_that_nobody_wrote_have_no_gradient_after_a_change_of_dtype(how: str) -> None:
    module = nn.Linear(2, 2)
    store = fv.VarStore.from_module(module, grads="views")
    assert store.gradient_names() == []
    if how == "store":
        store.double()
    else:
        module.double()
        store.rebind()
    assert store.gradient_names() == []


def test_the_gradient_of_an_empty_variable_comes_back_from_a_checkpoint() -> None:
    store = fv.VarStore(grads="views")
    store.add("empty", torch.empty(0, 3))
    store.add("w", torch.ones(2))
    opt = fv.optim.SGD(store, lr=0.1)
    store.zero_grad()
    store["empty"].set_grad(torch.empty(0, 3))
    store["w"].set_grad(torch.ones(2))
    assert store.gradient_names() == ["empty", "w"]
    file = io.BytesIO()
    store.save(file, opt)
    store.zero_grad()
    file.seek(0)
    store.load(file, opt)
    assert store.gradient_names() == ["empty", "w"]


def test_a_checkpoint_right_after_state_was_given_up_loads() -> None:
    store = fv.VarStore()
    kept, frozen = store.add("kept", torch.ones(2)), store.add("frozen", torch.ones(3))
    opt = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    kept.grad, frozen.grad = torch.ones(2), torch.ones(3)
    opt.step()
    store.freeze("frozen")
    store.compact()  # takes the state of what is frozen; the optimizer has not looked since
    file = io.BytesIO()
    store.save(file, opt)
    momentum = opt.state[kept]["momentum_buffer"].clone()
    opt.state[kept]["momentum_buffer"].zero_()
    file.seek(0)
    store.load(file, opt)
    assert torch.equal(opt.state[kept]["momentum_buffer"], momentum)
    assert opt.state[store["frozen"].param] == {}
