"""Lazy modules: adopted before they have shapes, and taken in, at their place, when they have."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.parity.pairs import MODES


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.LazyLinear(2, bias=False))


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight"]
BUFFERS = ["2.running_mean", "2.running_var", "2.num_batches_tracked"]


def backward(module: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    module(torch.randn(4, 5)).square().sum().backward()


@pytest.mark.row("P-R-11")
@pytest.mark.parametrize("mode", MODES)
def test_it_trains_as_with_torch(mode: str) -> None:
    """A step before the first forward pass steps the others; then each is stepped, at its place in the param groups."""
    ours, theirs = made(), made()
    store = fv.VarStore.from_module(ours, grads=mode)
    assert list(store.variables()) == ["1.weight", "1.bias", "2.num_batches_tracked"]
    mine = fv.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    torchs = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    weight = ours[0].weight
    for module, optimizer in ((ours, mine), (theirs, torchs)):
        module[1].weight.grad = torch.ones(4, 3)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(ours[1].weight, theirs[1].weight)
    for seed in range(3):
        for module, optimizer in ((ours, mine), (theirs, torchs)):
            backward(module, seed)
            optimizer.step()
            optimizer.zero_grad()
    assert ours[0].weight is weight
    assert store["0.weight"].param is weight
    assert list(store.variables()) == NAMES + BUFFERS
    store.check()
    for (name, value), expected in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5, msg=name)
    torchs.load_state_dict(mine.state_dict())  # the same parameters in the same order
    assert all(torchs.state[param]["momentum_buffer"].shape == param.shape for param in theirs.parameters())


def test_groups_by_pattern_take_them_up_in_the_order_of_the_module() -> None:
    module = made()
    store = fv.VarStore.from_module(module)
    patterns = fv.optim.SGD([{"params": ["0.*", "3.*"], "lr": 0.5}, {"params": "*"}], store=store, lr=0.1)
    whole = fv.optim.AdamW(store, lr=0.1)
    backward(module, 0)
    patterns.step()
    whole.step()
    params = dict(module.named_parameters())
    lists = [[params[name] for name in names] for names in (["0.weight", "0.bias", "3.weight"], NAMES[2:6])]
    for group, wanted in zip(patterns.param_groups, lists, strict=True):
        assert all(map(lambda a, b: a is b, group["params"], wanted))
        assert len(group["params"]) == len(wanted)
    assert [id(p) for p in whole.param_groups[0]["params"]] == [id(p) for p in params.values()]


@pytest.mark.parametrize("mode", MODES)
def test_what_came_before_keeps_gradient_and_state(mode: str) -> None:
    """They move behind the lazy ones: all that was theirs moves along."""
    module = made()
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    store["1.weight"].set_grad(torch.full((4, 3), 2.0))
    optimizer.step()
    optimizer.zero_grad()
    store["1.weight"].set_grad(torch.full((4, 3), 3.0))
    store.set_trainable_mask("1.weight", torch.arange(4).view(4, 1) > 0)
    before = optimizer.state[module[1].weight]["exp_avg"].clone(), module[1].weight.detach().clone()
    with torch.no_grad():
        module(torch.randn(4, 5))
    store.check()
    assert store["1.weight"].index == 2
    assert torch.equal(optimizer.state[module[1].weight]["exp_avg"], before[0])
    assert torch.equal(module[1].weight, before[1])
    grad, mask = store["1.weight"].grad, store.trainable_mask("1.weight")
    assert grad is not None
    assert mask is not None
    assert grad[1:].eq(3.0).all()
    assert not mask[0].any()
    assert store["0.weight"].grad is None


def test_files_hold_them_once_they_have_shapes_and_say_so_before() -> None:
    module = made()
    store = fv.VarStore.from_module(module)
    assert "left out: 0.weight (lazy: taken in after the first forward pass)" in store.summary()
    with pytest.warns(UserWarning, match=r"7 tensors .*'0\.weight': lazy"):
        store.save(io.BytesIO())
    module(torch.ones(4, 5))
    assert "lazy" not in store.summary()
    file = io.BytesIO()
    store.save(file)
    value = module[3].weight.detach().clone()
    store.values_of(torch.float32).zero_()
    file.seek(0)
    store.load(file)
    assert torch.equal(module[3].weight, value)


def test_an_optimizer_that_is_given_bare_parameters() -> None:
    """The store that is made for it takes them in as well; all are lazy, to begin with."""
    ours, theirs = nn.LazyLinear(2), nn.LazyLinear(2)
    mine, torchs = fv.optim.Adam(ours.parameters(), lr=0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for module, optimizer in ((ours, mine), (theirs, torchs)):
        optimizer.step()
        for seed in range(2):
            backward(module, seed)
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert len(mine.store) == 2


def test_a_store_in_another_dtype_converts_them_too() -> None:
    module = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))
    store = fv.VarStore.from_module(module, dtype=torch.bfloat16)
    module(torch.ones(1, 3, dtype=torch.bfloat16))
    assert {variable.dtype for variable in store.variables().values()} == {torch.bfloat16}
    assert len(store) == 4


def test_copies_wait_for_the_lazy_ones_of_their_module() -> None:
    module = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))
    store = fv.VarStore.from_module(module)
    by_hand, by_store = fv.optim.SGD(module.parameters(), lr=0.1), fv.optim.SGD(store, lr=0.1)
    with pytest.raises(fv.FlatvarsError, match=r"2 lazy parameters.*forward pass"):
        copy.deepcopy((module, store, by_hand))
    other, twin, optimizer = copy.deepcopy((module, store, by_store))
    backward(other.append(nn.Flatten()), 0)
    optimizer.step()
    assert list(twin.variables()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert optimizer.param_groups[0]["params"][0] is other[0].weight
    assert len(store) == 2


def test_names_that_are_waited_for_are_taken() -> None:
    module = nn.LazyLinear(2)
    store = fv.VarStore.from_module(module)
    with pytest.raises(fv.NameTakenError, match="'weight'"):
        store.add("weight", torch.ones(2))
    with pytest.raises(fv.UnknownNameError):
        fv.optim.SGD("head.*", store=store, lr=0.1)


def test_the_store_that_adopted_them_last_takes_them_in() -> None:
    module = nn.LazyLinear(2)
    first, second = fv.VarStore.from_module(module), fv.VarStore.from_module(module)
    module(torch.ones(1, 3))
    assert (len(first), len(second)) == (0, 2)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


def test_a_lazy_module_that_was_replaced() -> None:
    """What stands at its place when somebody looks is what is meant."""
    module = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))
    store = fv.VarStore.from_module(module)
    module[0] = nn.Linear(3, 2)
    store.check()
    assert store["0.weight"].param is module[0].weight


def test_indices_are_the_old_ones_while_it_is_told_that_variables_leave() -> None:
    """A gradient that its user dropped is not another variable's when spans move."""
    store = fv.VarStore(grads="views")
    params = {name: store.add(name, torch.ones(3)) for name in "abc"}
    store.zero_grad()
    for param in params.values():
        param.grad.fill_(2.0)
    params["b"].grad = None
    store.remove("a")
    assert store["b"].grad is None
    grad = store["c"].grad
    assert grad is not None
    assert grad.eq(2.0).all()
