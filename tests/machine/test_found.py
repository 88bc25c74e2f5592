"""What the machine found, each as the shortest sequence that failed. Others stand beside what they are about."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

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


def test_a_view_without_elements_that_is_no_gradient_any_more_is_in_no_file() -> None:
    """What plans had noted of versions was old after a `.grad` was taken in."""
    module = nn.ParameterDict({"empty": nn.Parameter(torch.empty(0, 3)), "w": nn.Parameter(torch.ones(2))})
    store = fv.VarStore.from_module(module, grads="views")
    for param in module.values():
        param.grad = torch.ones_like(param)
    store.norms()
    module["empty"].grad = None
    store.norms()
    module["empty"].grad = torch.empty(0, 3)
    assert store.norms()["empty"][1] is not None
    module["empty"].grad = None
    assert store["empty"].grad is None
    assert store.norms()["empty"][1] is None


def test_a_view_without_elements_that_nobody_wrote_is_no_gradient_after_a_conversion() -> None:
    module = nn.ParameterDict({"empty": nn.Parameter(torch.empty(0, 3)), "w": nn.Parameter(torch.ones(2))})
    store = fv.VarStore.from_module(module, grads="views")
    assert store.gradient_names() == []
    module.double()
    store.rebind()
    assert store.gradient_names() == []


def test_zeroing_by_one_optimizer_is_known_to_all() -> None:
    """What the store's own plans had noted of an empty variable's view was old after an optimizer's zeroing."""
    module = nn.ParameterDict({"empty": nn.Parameter(torch.empty(0, 3)), "w": nn.Parameter(torch.ones(2))})
    store = fv.VarStore.from_module(module, grads="views")
    optimizer = fv.optim.SGD([module["empty"]], lr=0.1)
    assert store.norms()["empty"][1] is None
    optimizer.step()
    module["empty"].grad.add_(1.0)
    optimizer.step()
    optimizer.zero_grad()
    assert store.gradient_names() == []
    assert store.norms()["empty"][1] is None


@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("how", ["kept", "converted"])
def test_new_gradients_are_saved_though_those_of_the_last_step_are_still_there(how: str, mode: str) -> None:
    """Somebody keeps them, or old plans do: they are unchanged, and no more what lies in `.grad`."""
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.SGD(store, lr=0.1)
    optimizer.zero_grad()
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    kept = [param.grad for param in module.parameters()]
    if how == "converted":
        store.double()
    for param in module.parameters():
        param.grad = torch.full_like(param, 7.0)
    assert len(kept) == 2
    snapshot = store.snapshot(optimizer)
    store.zero_grad()
    store.restore(snapshot)
    assert store.gradient_names() == ["weight", "bias"]
    assert store["weight"].grad.unique().tolist() == [7.0]


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "snapshot", "file"])
def test_state_of_what_is_in_no_group_any_more_stays(how: str) -> None:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["params"].pop(0)
    expected = {key: value.clone() for key, value in optimizer.state[module.weight].items()}
    file = io.BytesIO()
    if how in ("snapshot", "file"):
        snapshot = store.snapshot(optimizer)
        store.save(file, optimizer)
        for value in optimizer.state[module.weight].values():
            value.zero_()
        file.seek(0)
        store.restore(snapshot) if how == "snapshot" else store.load(file, optimizer)
    elif how == "deepcopy":
        module, store, optimizer = copy.deepcopy((module, store, optimizer))
    else:
        module, store, optimizer = pickle.loads(pickle.dumps((module, store, optimizer)))
    state = optimizer.state[module.weight]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


BEFORE_A_STEP: dict[str, Callable[[fv.VarStore, fv.optim.AdamW], object]] = {
    "zero_grad of the optimizer": lambda store, optimizer: optimizer.zero_grad(),
    "zero_grad of the store": lambda store, optimizer: store.zero_grad(),
    "zeros by the optimizer": lambda store, optimizer: optimizer.zero_grad(set_to_none=False),
    "zeros by the store": lambda store, optimizer: store.zero_grad(set_to_none=False),
    "set_grad": lambda store, optimizer: store["weight"].set_grad(torch.ones(2, 3)),
    "look": lambda store, optimizer: store["weight"].grad,
    "freeze": lambda store, optimizer: store.freeze("bias"),
    "growth": lambda store, optimizer: (store.add("late", torch.ones(3)), store.regions),
}


@pytest.mark.filterwarnings("ignore::flatvars.MovedWarning")
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("call", BEFORE_A_STEP)
def test_calls_between_a_conversion_by_the_module_and_the_step_that_follows_it(call: str, mode: str) -> None:
    """A gradient of the stream's dtype was given to a Parameter of another, which torch refuses."""
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    module.double()
    BEFORE_A_STEP[call](store, optimizer)
    before = module.weight.detach().clone()
    optimizer.step()
    zeroed = call.startswith("zero_grad")
    assert (store.gradient_names() == []) == zeroed
    assert torch.equal(module.weight, before) == zeroed
    assert module.weight.dtype == torch.float64
    store.check()


@pytest.mark.filterwarnings("ignore::flatvars.MovedWarning")
def test_a_look_at_gradients_after_their_module_converted_them() -> None:
    module = nn.ParameterDict({"empty": torch.empty(0, 3), "w": torch.ones(2), "b": torch.ones(3)})
    store = fv.VarStore.from_module(module, grads="views")
    module["w"].grad.fill_(2.0)
    module.double()
    assert store.gradient_names() == ["w"]
    assert store["w"].grad.tolist() == [2.0, 2.0]
    store.accumulate()
    assert store.gradient_names() == ["w"]


@pytest.mark.parametrize("where", ["pending", "accumulated"])
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_compacting_loses_no_gradient_that_a_flag_left(mode: str, where: str) -> None:
    """Its room was given up, and the step that would have used it passed over it."""
    module = nn.Linear(3, 2)
    plain = copy.deepcopy(module)
    store = fv.VarStore.from_module(module, grads=mode)
    pairs = [(store, module, fv.optim.SGD(store, lr=0.1, momentum=0.9))]
    pairs += [(None, plain, torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9))]
    for of, net, optimizer in pairs:
        net(torch.ones(1, 3)).sum().backward()
        if of is not None and where == "accumulated":
            of.accumulate()
        net.weight.requires_grad_(False)
        if of is not None:
            of.compact()
        optimizer.step()
    assert torch.equal(module.weight, plain.weight)
    pairs[0][2].zero_grad()
    store.compact()
    assert not store["weight"].spec.has_room


@pytest.mark.parametrize("where", ["pending", "accumulated"])
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_compacting_loses_no_gradient_that_freezing_kept(mode: str, where: str) -> None:
    store = fv.VarStore(grads=mode)
    store.add("a", torch.ones(3))
    store.add("b", torch.ones(2))
    store.zero_grad()
    store["a"].set_grad(torch.full((3,), 2.0))
    if where == "accumulated":
        store.accumulate()
    store.freeze("a", clear_grad=False)
    store.compact()
    assert not store["a"].spec.has_room
    assert store["a"].grad.tolist() == [2.0] * 3
    store.unfreeze()
    assert store.gradient_names() == ["a"]
    assert store.grad_norm().item() == pytest.approx(12**0.5)


def test_a_gradient_that_lies_in_the_view_of_another_is_parted_before_that_one_moves_or_is_erased() -> None:
    module = nn.ParameterDict({name: torch.ones(2) for name in "abc"})
    store = fv.VarStore.from_module(module, grads="views")
    store.freeze("a")
    module["a"].grad, module["b"].grad = module["b"].grad, None
    store.compact()  # what nobody wrote was no one's gradient, and is not now that the view is an old one
    assert store["a"].grad is None
    module["b"].grad = torch.full((2,), 3.0)
    store.accumulate()
    module["a"].grad, module["b"].grad = module["b"].grad, None
    store.zero_grad()
    module["a"].grad = torch.full((2,), 3.0)
    module["b"].grad, module["a"].grad = module["a"].grad, None
    assert store["b"].grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("look", ["zero_grad", "grad_norm", "step"])
def test_a_frozen_variable_that_took_over_the_gradient_of_another_keeps_it(look: str) -> None:
    module = nn.ParameterDict({name: torch.ones(2) for name in "ab"})
    store = fv.VarStore.from_module(module, grads="views")
    optimizer = fv.optim.SGD([module["b"]], lr=0.1)
    module["b"].grad.fill_(3.0)
    store.freeze("a")
    module["a"].grad, module["b"].grad = module["b"].grad, None
    getattr(store if look == "grad_norm" else optimizer, look)()
    optimizer.zero_grad()
    assert module["a"].grad.tolist() == [3.0, 3.0]
    assert store["b"].grad is None


def test_a_gradient_that_is_handed_on_is_read_before_its_place_is_emptied() -> None:
    module = nn.ParameterDict({name: torch.ones(2) for name in "ab"})
    store = fv.VarStore.from_module(module, grads="views")
    module["b"].grad.fill_(3.0)
    module["a"].grad, module["b"].grad = module["b"].grad, None
    assert store["a"].grad.tolist() == [3.0, 3.0]
    assert store["b"].grad is None
