"""Variables that leave their store: removed by name, tied to another one, or all of them, released."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import values

X = torch.tensor([[1.0, 2.0, -3.0], [0.5, -1.0, 2.0]])
MODES = pytest.mark.parametrize("mode", ["gather", "views"])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))


def backward(module: nn.Module) -> None:
    module(X).square().mean().backward()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        backward(module)
        optimizer.step()
        optimizer.zero_grad()


def adopted(mode: str, steps: int = 2) -> tuple[nn.Sequential, fv.VarStore, fv.optim.AdamW]:
    module = net()
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    train(module, optimizer, steps)
    return module, store, optimizer


# Removed by name -----------------------------------------------------------------------------------------------------


@MODES
def test_what_is_removed_keeps_its_values_and_the_rest_trains_on_as_with_torch(mode: str) -> None:
    module, store, optimizer = adopted(mode)
    twin = net()
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.1)
    train(twin, theirs, 2)
    before, kept = values(module), list(module.parameters())
    assert store.remove("2.*") == ["2.weight", "2.bias"]
    assert list(store) == ["0.weight", "0.bias"]
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())
    assert all(a is b for a, b in zip(module.parameters(), kept, strict=True))
    theirs.param_groups[0]["params"] = list(twin[0].parameters())
    for each, trained in ((module, optimizer), (twin, theirs)):
        train(each, trained, 3)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-5, atol=1e-7)
    assert torch.equal(module[2].weight, before["2.weight"])
    assert optimizer.param_groups[0]["params"] == [module[0].weight, module[0].bias]
    assert len(optimizer.state_dict()["state"]) == 2
    store.check()


@MODES
def test_its_gradient_is_left_in_grad(mode: str) -> None:
    module, store, _ = adopted(mode)
    backward(module)
    gradient = store["2.weight"].grad.clone()
    store.remove("2.weight")
    assert torch.equal(module[2].weight.grad, gradient)
    assert module[2].weight.grad.untyped_storage().nbytes() == gradient.nbytes
    module(X).sum().backward()
    assert not torch.equal(module[2].weight.grad, gradient)


@MODES
def test_an_accumulated_gradient_is_left_in_grad(mode: str) -> None:
    module, store, _ = adopted(mode)
    backward(module)
    gradient = store["2.weight"].grad.clone()
    store.accumulate()
    store.remove("2.weight")
    assert torch.equal(module[2].weight.grad, gradient)


@MODES
def test_memory_is_flat_over_new_heads(mode: str, tmp_path: Path) -> None:
    body = nn.Linear(3, 3)
    store = fv.VarStore.from_module(body, grads=mode)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    sizes, rows, files = set(), set(), set()
    for epoch in range(6):
        head = nn.Linear(3, 2)
        store.add_module(head, f"head{epoch}")
        for _ in range(2):
            head(body(X)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        sizes.add(store.registry.streams.nbytes)
        rows.add(len(optimizer.states.steps))
        store.save(tmp_path / "file.safetensors", optimizer)
        files.add((tmp_path / "file.safetensors").stat().st_size)
        gone = weakref.ref(head)
        store.remove(f"head{epoch}.*")
        del head
        gc.collect()
        assert gone() is None
    assert len(sizes) == len(rows) == 1
    assert max(files) - min(files) < 16  # a step count has more digits by and by
    assert list(store) == ["weight", "bias"]


def test_its_name_is_free_and_its_state_is_not_the_next_ones() -> None:
    module, store, optimizer = adopted("gather")
    store.remove("2.weight")
    new = nn.Parameter(torch.ones(3, 3))
    store.add("2.weight", new)
    assert new not in optimizer.state
    new.grad = torch.ones(3, 3)
    optimizer.step()
    assert optimizer.state[new]["step"] == 1
    torch.testing.assert_close(optimizer.state[new]["exp_avg"], torch.full((3, 3), 0.1))
    assert store["2.weight"].param is new is not module[2].weight


def test_a_name_that_is_not_there_removes_nothing() -> None:
    _, store, _ = adopted("gather")
    with pytest.raises(fv.UnknownNameError):
        store.remove(["0.weight", "nothing"])
    assert len(store) == 4


def test_masks_and_frozen_variables_of_others_stay() -> None:
    module, store, optimizer = adopted("gather")
    mask = torch.eye(3) > 0
    store.set_trainable_mask("2.weight", mask)
    store.freeze("2.bias")
    store.remove("0.*")
    assert torch.equal(store.trainable_mask("2.weight"), mask)
    before = values(module)
    train(module, optimizer, 1)
    assert torch.equal(module[2].weight[~mask], before["2.weight"][~mask])
    assert not torch.equal(module[2].weight[mask], before["2.weight"][mask])
    assert torch.equal(module[2].bias, before["2.bias"])
    store.check()


def test_a_store_may_be_emptied_and_filled_again() -> None:
    module, store, optimizer = adopted("gather")
    store.remove("*")
    assert len(store) == 0
    store.add_module(module)
    train(module, optimizer, 1)
    assert len(optimizer.param_groups[0]["params"]) == 4
    store.check()


# Tied after adoption -------------------------------------------------------------------------------------------------


@MODES
def test_two_that_were_tied_are_one_variable_with_two_names(mode: str, tmp_path: Path) -> None:
    module, store, optimizer = adopted(mode)
    twin = net()
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.1)
    train(twin, theirs, 2)
    for each in (module, twin):
        each[2].weight = each[0].weight
    theirs.param_groups[0]["params"] = [twin[0].weight, twin[0].bias, twin[2].bias]
    theirs.zero_grad()
    assert store.rebind() == []
    assert len(store) == 3
    assert store["2.weight"] is store["0.weight"]
    assert store["0.weight"].names == ["0.weight", "2.weight"]
    for each, trained in ((module, optimizer), (twin, theirs)):
        train(each, trained, 3)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-5, atol=1e-7)
    store.check()
    store.save(tmp_path / "file.safetensors", optimizer)
    other = net()
    other[2].weight = other[0].weight
    fv.VarStore.from_module(other).load(tmp_path / "file.safetensors")
    assert torch.equal(other[2].weight, module[2].weight)


def test_a_save_says_what_to_call_for_a_tied_one(tmp_path: Path) -> None:
    module, store, _ = adopted("gather")
    module[2].weight = module[0].weight
    with pytest.raises(fv.AliasError, match=r"'2\.weight'.*tied.*store\.rebind\(\)"):
        store.save(tmp_path / "file.safetensors")
    store.rebind()
    store.save(tmp_path / "file.safetensors")


# All of them ---------------------------------------------------------------------------------------------------------


@MODES
def test_a_released_module_trains_with_torch_and_may_be_adopted_anew(mode: str) -> None:
    module, store, optimizer = adopted(mode)
    before, state = values(module), copy.deepcopy(optimizer.state_dict())
    backward(module)
    gradient = store["0.weight"].grad.clone()
    store.release()
    assert torch.equal(module[0].weight.grad, gradient)
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())
    assert len({p.untyped_storage().data_ptr() for p in module.parameters()}) == 4
    theirs = torch.optim.AdamW(module.parameters(), lr=0.1)
    theirs.load_state_dict(state)
    theirs.step()
    with pytest.raises(fv.FlatvarsError, match="has released its variables"):
        optimizer.step()
    with pytest.raises(fv.FlatvarsError, match="has released its variables"):
        store.add("more", torch.ones(2))
    again = fv.VarStore.from_module(module, grads=mode)
    ours = fv.optim.AdamW(again, lr=0.1)
    ours.load_state_dict(theirs.state_dict())
    module.zero_grad()
    train(module, ours, 1)
    assert ours.state[module[0].weight]["step"] == 4
    again.check()


@MODES
def test_a_cell_may_be_run_again(mode: str) -> None:
    module = net()
    for run in range(3):
        store = fv.VarStore.from_module(module, grads=mode)
        optimizer = fv.optim.AdamW(module.parameters(), lr=0.1)
        train(module, optimizer, 2)
        assert optimizer.state[module[0].weight]["step"] == 2, run
        store.check()


def test_who_held_the_module_before_says_that_it_was_adopted_anew() -> None:
    module, store, optimizer = adopted("gather")
    fv.VarStore.from_module(module)
    backward(module)
    for call in (optimizer.step, store.check, lambda: store.save("never.safetensors")):
        with pytest.raises(fv.FlatvarsError, match="adopted anew, by another one"):
            call()
    assert not Path("never.safetensors").exists()


def test_nothing_is_given_up_when_adopting_anew_fails() -> None:
    module, store, optimizer = adopted("gather")
    whole = nn.ModuleList([module, nn.Linear(2, 2, dtype=torch.complex64)])
    with pytest.raises(fv.SpecError, match="complex64"):
        fv.VarStore.from_module(whole)
    train(module, optimizer, 1)
    store.check()


def test_a_part_of_a_store_is_not_taken_from_it() -> None:
    module, store, _ = adopted("gather")
    with pytest.raises(fv.SpecError, match=r"belongs to a store already, as '0\.weight'.*VarStore\.of\(module\)"):
        fv.VarStore.from_module(module[0])
    store.check()


def test_the_store_of_a_module() -> None:
    module, store, optimizer = adopted("gather")
    assert fv.VarStore.of(module) is fv.VarStore.of(module[2]) is store
    del store
    handle = fv.VarStore.of(module)
    assert list(handle) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    handle.freeze("0.*")
    train(module, optimizer, 1)
    assert fv.VarStore.of(module) is handle
    with pytest.raises(fv.FlatvarsError, match="no store holds its parameters"):
        fv.VarStore.of(nn.Linear(2, 2))
    other = nn.Linear(2, 2)
    assert len(fv.VarStore.from_module(other)) == 2
    with pytest.raises(fv.FlatvarsError, match="2 stores hold its parameters"):
        fv.VarStore.of(nn.ModuleList([module, other]))


def test_released_memory_is_freed() -> None:
    module, store, optimizer = adopted("views")
    memory = [weakref.ref(one.buffer.untyped_storage()) for one in store.registry._streams._streams.values()]
    store.release()
    del optimizer
    gc.collect()
    assert all(reference() is None for reference in memory)


# Hooks and attributes that lead back ---------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("back", ["hook", "attribute"])
def test_a_parameter_that_leads_back_to_its_module_does_not_keep_it(back: str, mode: str) -> None:
    module, store, optimizer = adopted(mode)
    for param in module.parameters():
        if back == "hook":
            param.register_hook(lambda grad, module=module: grad)
        else:
            param.owner = module
    train(module, optimizer, 1)
    gone = weakref.ref(module)
    del module, store, optimizer, param
    gc.collect()
    assert gone() is None
