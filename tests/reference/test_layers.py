"""Layers over a path: tch's names, creation order and initial values; torch's modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv

pytestmark = pytest.mark.row("T-I-11")

Build = Callable[[fv.Path], nn.Module]

# By name: how to build, the variables in creation order, the torch twin, an input.
LAYERS: dict[str, tuple[Build, str, Callable[[], nn.Module], torch.Size | tuple[int, ...]]] = {
    "linear": (lambda p: fv.nn.linear(p, 5, 3), "bias weight", lambda: nn.Linear(5, 3), (4, 5)),
    "linear-plain": (
        lambda p: fv.nn.linear(p, 5, 3, bias=False),
        "weight",
        lambda: nn.Linear(5, 3, bias=False),
        (4, 5),
    ),
    "conv1d": (
        lambda p: fv.nn.conv1d(p, 4, 6, 3, stride=2, padding=1, groups=2),
        "bias weight",
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
        (2, 4, 9),
    ),
    "conv2d": (
        lambda p: fv.nn.conv2d(p, 3, 4, (3, 1), padding="same", bias=False),
        "weight",
        lambda: nn.Conv2d(3, 4, (3, 1), padding="same", bias=False),
        (2, 3, 6, 6),
    ),
    "conv3d": (lambda p: fv.nn.conv3d(p, 2, 3, 2), "bias weight", lambda: nn.Conv3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "layer_norm": (
        lambda p: fv.nn.layer_norm(p, (3, 5), eps=1e-3),
        "weight bias",
        lambda: nn.LayerNorm((3, 5), eps=1e-3),
        (2, 3, 5),
    ),
    "layer_norm-plain": (
        lambda p: fv.nn.layer_norm(p, 5, elementwise_affine=False),
        "",
        lambda: nn.LayerNorm(5, elementwise_affine=False),
        (2, 5),
    ),
    "group_norm": (lambda p: fv.nn.group_norm(p, 2, 4), "weight bias", lambda: nn.GroupNorm(2, 4), (2, 4, 5)),
    "batch_norm1d": (
        lambda p: fv.nn.batch_norm1d(p, 4, momentum=0.3),
        "weight bias running_mean running_var",
        lambda: nn.BatchNorm1d(4, momentum=0.3),
        (6, 4),
    ),
    "batch_norm2d": (
        lambda p: fv.nn.batch_norm2d(p, 4, affine=False),
        "running_mean running_var",
        lambda: nn.BatchNorm2d(4, affine=False),
        (6, 4, 3, 3),
    ),
    "batch_norm3d": (
        lambda p: fv.nn.batch_norm3d(p, 4, track_running_stats=False),
        "weight bias",
        lambda: nn.BatchNorm3d(4, track_running_stats=False),
        (6, 4, 2, 2, 2),
    ),
    "lstm": (
        lambda p: fv.nn.lstm(p, 5, 3, num_layers=2, bidirectional=True),
        " ".join(
            f"{kind}_l{layer}{suffix}"
            for layer in (0, 1)
            for suffix in ("", "_reverse")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ),
        lambda: nn.LSTM(5, 3, num_layers=2, bidirectional=True, batch_first=True),
        (4, 2, 5),
    ),
    "gru": (
        lambda p: fv.nn.gru(p, 5, 3, bias=False, batch_first=False),
        "weight_ih_l0 weight_hh_l0",
        lambda: nn.GRU(5, 3, bias=False),
        (4, 2, 5),
    ),
    "embedding": (
        lambda p: fv.nn.embedding(p, 11, 4, padding_idx=2),
        "weight",
        lambda: nn.Embedding(11, 4, padding_idx=2),
        (3, 7),
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def data_for(name: str) -> torch.Tensor:
    shape = LAYERS[name][3]
    return torch.randint(11, tuple(shape)) if name == "embedding" else torch.randn(shape)


def output(module: nn.Module, data: torch.Tensor) -> torch.Tensor:
    result = module(data)
    return result[0] if isinstance(result, tuple) else result


@each_layer
def test_names_and_creation_order(name: str) -> None:
    store = fv.VarStore()
    module = LAYERS[name][0](store.root() / "layer")
    expected = [f"layer.{leaf}" for leaf in LAYERS[name][1].split()]
    assert list(store) == expected
    tensors = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]
    assert {id(t) for t in tensors} == {id(v.param) for v in store.variables().values()}


@each_layer
def test_the_module_is_torchs(name: str) -> None:
    """Class, state dict and options are the twin's, and so are outputs once the values are."""
    store = fv.VarStore()
    ours, theirs = LAYERS[name][0](store.root()), LAYERS[name][2]()
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    data = data_for(name)
    for _ in range(2):
        torch.testing.assert_close(output(ours, data), output(theirs, data), rtol=0.0, atol=0.0)
    for left, right in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(left, right)


@each_layer
@pytest.mark.parametrize("early", [True, False], ids=["used-before-the-carve", "carved-first"])
def test_training_follows_torch(name: str, early: bool) -> None:
    """Before the buffers exist, while they are made between forward and backward, and after."""
    store = fv.VarStore()
    ours, theirs = LAYERS[name][0](store.root()), LAYERS[name][2]()
    theirs.load_state_dict(ours.state_dict())
    if not early:
        store.check()
    optimizer = fv.optim.SGD(store, lr=0.1)
    trained = list(theirs.parameters())
    reference = torch.optim.SGD(trained, lr=0.1) if trained else None
    data = data_for(name)
    for _ in range(3):
        for module in (ours, theirs):
            result = output(module, data).square().mean()
            if result.requires_grad:
                result.backward()
        optimizer.step()
        optimizer.zero_grad()
        if reference is not None:
            reference.step()
            reference.zero_grad()
    store.check()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key], rtol=5e-6, atol=5e-6)


def test_carve_between_forward_and_backward() -> None:
    store = fv.VarStore()
    layer = fv.nn.lstm(store.root(), 3, 4)
    loss = layer(torch.randn(2, 5, 3))[0].square().sum()
    store.check()
    loss.backward()
    assert store.gradient_names() == list(store)


def test_group_and_dtype_of_the_path() -> None:
    store = fv.VarStore(dtype=torch.bfloat16)
    layer = fv.nn.batch_norm1d(store.root().set_group(2) / "norm", 4)
    assert {v.group for v in store.variables().values()} == {2}
    assert {v.dtype for v in store.variables().values()} == {torch.bfloat16}
    assert layer(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    wide = fv.nn.linear(store.root() / "head", 4, 2, dtype=torch.float64)
    assert (wide.weight.dtype, wide.bias.dtype) == (torch.float64, torch.float64)


def test_batches_tracked_is_no_variable() -> None:
    store = fv.VarStore()
    norm = fv.nn.batch_norm1d(store.root(), 4)
    assert len(store) == 4
    norm(torch.randn(3, 4))
    assert norm.num_batches_tracked.item() == 1
    assert norm.num_batches_tracked.dtype == torch.int64


def test_a_second_layer_of_one_path_gets_suffixes() -> None:
    store = fv.VarStore()
    fv.nn.linear(store.root() / "a", 3, 2)
    again = fv.nn.linear(store.root() / "a", 3, 2)
    assert list(store) == ["a.bias", "a.weight", "a.bias__2", "a.weight__3"]
    assert list(again.state_dict()) == ["weight", "bias"]


def test_a_taken_name_declares_nothing() -> None:
    store = fv.VarStore(on_duplicate="error")
    store.root().zeros("weight", (3,))
    with pytest.raises(fv.NameTakenError, match="'weight' exists already"):
        fv.nn.linear(store.root(), 3, 2)
    assert list(store) == ["weight"]
    assert "bias" not in store
    fv.nn.linear(store.root() / "other", 3, 2)
    store.check()
    assert [v.index for v in store.variables().values()] == [0, 1, 2]


def test_errors_are_torchs() -> None:
    store = fv.VarStore()
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        fv.nn.conv2d(store.root(), 3, 4, 3, groups=2)
    with pytest.raises(ValueError, match=r"num_channels.*must be divisible by num_groups"):
        fv.nn.group_norm(store.root(), 2, 3)
    with pytest.raises(TypeError, match="device"):
        fv.nn.embedding(store.root(), 3, 4, device="cpu")
    with pytest.raises(ValueError, match="dropout should be a number"):
        fv.nn.lstm(store.root(), 3, 4, dropout=2.0)
    assert store.is_empty
