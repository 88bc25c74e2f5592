"""Training through the library on either backend follows torch.optim."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.stores import Net, backward, batch, set_grads, store_of
from tests.support.tolerances import assert_norm, assert_same_bits

# Both sides are float32, with other orders of operations; two steps of at most 0.1.
STEPS = 2
CLOSE = {"rtol": 1e-4, "atol": 2e-6}

OPTIMIZERS = {
    "sgd": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (fv.optim.Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4}),
    "adamw": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "amsgrad": True, "eps": 1e-4}),
}


@pytest.fixture
def pair(device):
    """A model and its twin that torch trains."""
    model = Net().to(device)
    return model, copy.deepcopy(model)


def assert_same_parameters(model, twin):
    for (name, actual), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("mine", "theirs", "options", "grads"),
    [(*OPTIMIZERS["sgd"], "gather"), (*OPTIMIZERS["adam"], "views"), (*OPTIMIZERS["adamw"], "gather")],
    ids=OPTIMIZERS,
)
def test_clipped_training(mine, theirs, options, grads, pair, device):
    model, twin = pair
    store = fv.VarStore.from_module(model, grads=grads)
    optimizer, reference = mine(store, max_norm=0.5, **options), theirs(twin.parameters(), **options)
    for _ in range(STEPS):
        data = batch(device)
        optimizer.zero_grad()
        reference.zero_grad()
        backward(model, data)
        backward(twin, data)
        optimizer.step()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        reference.step()
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-4, atol=1e-6)
    assert_same_parameters(model, twin)
    store.check()


def test_micro_batches(pair, device):
    model, twin = pair
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.AdamW(store, max_norm=1.0, eps=1e-4)
    reference = torch.optim.AdamW(twin.parameters(), eps=1e-4)
    for _ in range(2):
        reference.zero_grad()
        for _ in range(3):
            data = batch(device)
            backward(model, data)
            store.accumulate(scale=1 / 3)
            backward(twin, data)
        for param in twin.parameters():
            param.grad /= 3
        optimizer.step()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        reference.step()
    assert_same_parameters(model, twin)


def test_frozen_and_unused_parameters(pair, device):
    model, twin = pair
    for net in pair:
        net.conv.requires_grad_(False)
    store = fv.VarStore.from_module(model)
    optimizer, reference = fv.optim.AdamW(store, eps=1e-4), torch.optim.AdamW(twin.parameters(), eps=1e-4)
    for step in range(3):
        data = batch(device)
        for net, opt in ((model, optimizer), (twin, reference)):
            opt.zero_grad()
            backward(net, data)
            if step == 1:
                net.head.bias.grad = None
            opt.step()
    assert_same_parameters(model, twin)
    assert optimizer.state[model.head.weight]["step"].item() == 3
    assert optimizer.state[model.head.bias]["step"].item() == 2
    assert optimizer.state[model.conv.weight] == {}


def test_momentum_that_starts_later(device):
    """A group without momentum keeps no buffer, so its first step with momentum starts from that gradient."""

    def train(optimizer, params):
        for k in range(4):
            optimizer.param_groups[1]["momentum"] = 0.0 if k < 2 else 0.9
            for param in params:
                param.grad = torch.full_like(param, k + 1.0)
            optimizer.step()
        return params[1].detach()

    def groups(params):
        return [{"params": [param], "momentum": 0.9} for param in params]

    twins = [nn.Parameter(torch.zeros(4, device=device)) for _ in range(2)]
    expected = train(torch.optim.SGD(groups(twins), lr=0.1), twins)
    store = store_of([(4,), (4,)], device=device)
    store.values.zero_()
    params = [variable.param for variable in store.trainable_variables()]
    actual = train(fv.optim.SGD(groups(params), lr=0.1), params)
    torch.testing.assert_close(actual, expected, **CLOSE)


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_masked_rows_of_an_embedding(grads, pair, device):
    """As if torch's step of those rows were taken back."""
    model, twin = pair
    store = fv.VarStore.from_module(model, grads=grads)
    optimizer = fv.optim.AdamW(store, max_norm=0.5, eps=1e-4, weight_decay=0.1)
    reference = torch.optim.AdamW(twin.parameters(), eps=1e-4, weight_decay=0.1)
    trains = (torch.arange(11, device=device) % 2 == 0).view(11, 1)
    store.set_trainable_mask("embedding.weight", trains)
    kept = twin.embedding.weight.detach().clone()
    for _ in range(STEPS):
        data = batch(device)
        for net, opt in ((model, optimizer), (twin, reference)):
            opt.zero_grad()
            backward(net, data)
        model.embedding.weight.grad[1] = torch.nan
        twin.embedding.weight.grad.mul_(trains)
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for opt in (optimizer, reference):
            opt.step()
        with torch.no_grad():
            twin.embedding.weight.copy_(torch.where(trains, twin.embedding.weight, kept))
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-4, atol=1e-6)
    assert_same_parameters(model, twin)
    assert_same_bits(model.embedding.weight[1::2].detach(), kept[1::2])
    assert not optimizer.state[model.embedding.weight]["exp_avg_sq"][1::2].any()
    store.check()


def test_sparse_embedding(device):
    store = fv.VarStore(device)
    weight = store.add("weight", torch.randn(9, 4, device=device))
    before = weight.detach().clone()
    optimizer = fv.optim.SGD(store, lr=1.0, max_norm=1e6)
    tokens = torch.tensor([1, 1, 7], device=device)
    with torch.sparse.check_sparse_tensor_invariants(True):
        nn.functional.embedding(tokens, weight, sparse=True).sum().backward()
        assert weight.grad.is_sparse
        optimizer.step()
    moved = before - weight.detach()
    expected = torch.zeros(9, 4, device=device)
    expected[1], expected[7] = 2.0, 1.0
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_dtypes_in_one_store(device):
    store = store_of(dtypes=(torch.float32, torch.bfloat16, torch.float64), device=device)
    optimizer = fv.optim.SGD(store, lr=0.5, max_norm=1.0)
    before = {name: v.value.double() for name, v in store.variables().items()}
    grads = [grad.double() for grad in set_grads(store)]
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    optimizer.step()
    assert_norm(optimizer.grad_norm, norm.cpu(), torch.float32)
    for (name, variable), grad in zip(store.variables().items(), grads, strict=True):
        expected = before[name] - 0.5 * grad / (norm + 1e-6)
        torch.testing.assert_close(variable.value.double(), expected.to(variable.dtype).double(), rtol=1e-2, atol=1e-6)
    store.check()


@pytest.mark.parametrize("grads", ["gather", "views"])
def test_skipping_changes_nothing(grads, device):
    store = store_of(device=device, grads=grads)
    optimizer = fv.optim.AdamW(store, skip_nonfinite=True)
    set_grads(store)
    optimizer.step()
    before, counts = store.values.clone(), optimizer.state_dict()["state"][0]["step"].item()
    set_grads(store)
    store["v2"].param.grad.fill_(torch.inf)
    optimizer.step()
    assert_same_bits(store.values, before)
    assert optimizer.state_dict()["state"][0]["step"].item() == counts == 1
    assert optimizer.skipped.item() == 1


def test_the_same_bits_on_repetition(device):
    def train():
        torch.manual_seed(3)
        store = store_of(device=device)
        optimizer = fv.optim.AdamW(store, max_norm=0.1)
        for _ in range(3):
            set_grads(store)
            optimizer.step()
        return store.values

    first = train()
    for _ in range(2):
        assert_same_bits(train(), first)


@pytest.mark.parametrize("wrong", [torch.ones(1030), torch.ones(5000)], ids=["short", "long"])
def test_a_given_gradient_of_another_length_is_refused(wrong, device):
    store = store_of(device=device)
    grads = set_grads(store)
    grads[1] = wrong.to(device)
    with pytest.raises(fv.GradientError, match="'v1'"):
        store.accumulate(grads)
