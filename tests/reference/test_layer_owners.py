"""Layers over a path belong to the store as adopted modules do: what leaves is noticed, what stays works."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import flatvars as fv

pytestmark = pytest.mark.row("T-I-11")


def test_a_replaced_parameter_is_noticed() -> None:
    store = fv.VarStore()
    layer = fv.nn.linear(store.root() / "head", 3, 2)
    optimizer = fv.optim.SGD(store, lr=0.1)
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    layer.weight = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(fv.AliasError, match=r"'head\.weight' is no longer used: Linear\.weight holds another"):
        optimizer.step()
    assert store.rebind() == ["head.weight"]
    optimizer.zero_grad()
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 3), 0.9))


def test_a_replaced_buffer_is_taken_in() -> None:
    store = fv.VarStore()
    norm = fv.nn.batch_norm1d(store.root(), 4)
    store.check()
    norm.running_mean = torch.ones(4)
    store.check_aliases()
    assert store["running_mean"].param is norm.running_mean
    assert torch.equal(store["running_mean"].value, torch.ones(4))


def test_layers_keep_the_store_alive() -> None:
    """An optimizer finds it by the parameters alone, as with adopted modules."""

    def build() -> nn.Module:
        root = fv.VarStore().root()
        return nn.Sequential(fv.nn.linear(root / 0, 3, 2), nn.Tanh(), fv.nn.linear(root / 2, 2, 1))

    model = build()
    gc.collect()
    optimizer = fv.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    assert len(optimizer.trainable_variables()) == 4


def test_layers_do_not_outlive_their_handles() -> None:
    store = fv.VarStore()
    reference = weakref.ref(store.registry)
    layer = fv.nn.lstm(store.root(), 3, 4)
    store.check()
    del store, layer
    assert reference() is None


@pytest.mark.parametrize("carved", [False, True], ids=["declared", "carved"])
def test_rnn_weights_are_the_parameters(carved: bool) -> None:
    """Where torch's list of flat weights is not the parameters, the next forward pass moves them out of the store."""
    store = fv.VarStore()
    for layer in (fv.nn.lstm(store.root() / "a", 3, 4, num_layers=2), fv.nn.gru(store.root() / "b", 3, 4)):
        if carved:
            store.check()
        assert not layer._weights_have_changed()
        assert all(w is getattr(layer, n) for w, n in zip(layer._flat_weights, layer._flat_weights_names, strict=True))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_an_rnn_adopted_from_meta_keeps_its_weights(kind: type[nn.RNNBase]) -> None:
    module = kind(3, 4, device="meta")
    fv.VarStore.from_module(module)
    assert not module._weights_have_changed()


def test_the_layers_survive_conversion_and_copies() -> None:
    store = fv.VarStore()
    model = nn.Sequential(fv.nn.linear(store.root() / 0, 3, 4), fv.nn.batch_norm1d(store.root() / 1, 4))
    store.double()
    data = torch.randn(5, 3, dtype=torch.float64)
    assert model(data).dtype == torch.float64
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(data), model.eval()(data))
    store.check()


def test_the_layers_go_with_a_merge() -> None:
    first, second = fv.VarStore(), fv.VarStore()
    model = nn.Sequential(fv.nn.linear(first.root() / "l", 3, 4), fv.nn.lstm(second.root() / "r", 4, 2))
    merged = fv.VarStore.merge([first, second])
    optimizer = fv.optim.SGD(merged, lr=0.1)
    optimizer.backward_step(model(torch.ones(2, 5, 3))[0].sum())
    merged.check()
    assert not model[1]._weights_have_changed()
    model[0].weight = nn.Parameter(torch.ones(4, 3))
    with pytest.raises(fv.AliasError, match=r"'l\.weight' is no longer used"):
        optimizer.step()
