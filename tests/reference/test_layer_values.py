"""Initial values of layers over a path: tch's defaults, or the initializers that are given."""

from __future__ import annotations

import math

import pytest
import torch

import flatvars as fv

pytestmark = pytest.mark.row("T-I-11")


def bounds(tensor: torch.Tensor) -> tuple[float, float]:
    return tensor.detach().min().item(), tensor.detach().max().item()


def test_default_values_of_linear() -> None:
    layer = fv.nn.linear(fv.VarStore().root(), 64, 1000)
    low, high = bounds(layer.weight)
    limit = math.sqrt(6 / 64)  # kaiming-uniform for ReLU; torch.nn.Linear's own would be 1 / 8
    assert -limit <= low < -0.99 * limit
    assert 0.99 * limit < high <= limit
    low, high = bounds(layer.bias)
    assert -1 / 8 <= low < -0.95 / 8
    assert 0.95 / 8 < high <= 1 / 8


@pytest.mark.parametrize("groups", [1, 2])
def test_default_values_of_conv(groups: int) -> None:
    layer = fv.nn.conv2d(fv.VarStore().root(), 8, 64, 3, groups=groups)
    low, high = bounds(layer.weight)
    limit = math.sqrt(6 / (8 // groups * 9))
    assert -limit <= low < -0.99 * limit
    assert 0.99 * limit < high <= limit
    assert bounds(layer.bias) == (0.0, 0.0)


def test_default_values_of_the_others() -> None:
    root = fv.VarStore().root()
    batch = fv.nn.batch_norm1d(root / "batch", 1000)
    low, high = bounds(batch.weight)
    assert 0.0 <= low < 0.01
    assert 0.99 < high <= 1.0
    assert bounds(batch.bias) == bounds(batch.running_mean) == (0.0, 0.0)
    assert bounds(batch.running_var) == (1.0, 1.0)
    for norm in (fv.nn.layer_norm(root / "layer", 9), fv.nn.group_norm(root / "group", 3, 9)):
        assert bounds(norm.weight) == (1.0, 1.0)
        assert bounds(norm.bias) == (0.0, 0.0)
    table = fv.nn.embedding(root / "table", 100, 100).weight.detach()
    assert abs(table.mean().item()) < 0.05
    assert abs(table.std().item() - 1.0) < 0.05
    rnn = fv.nn.gru(root / "rnn", 24, 50)
    low, high = bounds(rnn.weight_ih_l0)
    assert -0.5 <= low < -0.49
    assert 0.49 < high <= 0.5
    assert bounds(rnn.bias_ih_l0) == bounds(rnn.bias_hh_l0) == (0.0, 0.0)


def test_values_depend_on_the_name_alone() -> None:
    alone, crowded = fv.VarStore(seed=3), fv.VarStore(seed=3)
    fv.nn.conv2d(crowded.root() / "before", 3, 4, 3)
    left = fv.nn.linear(alone.root() / "head", 5, 3)
    right = fv.nn.linear(crowded.root() / "head", 5, 3)
    assert torch.equal(left.weight, right.weight)
    assert torch.equal(left.bias, right.bias)


def test_initializers_may_be_given() -> None:
    root = fv.VarStore().root()
    layer = fv.nn.linear(root / "a", 3, 2, weight_init=fv.init.constant(0.5), bias_init=fv.init.ones())
    assert torch.equal(layer(torch.ones(3)), torch.full((2,), 2.5))
    rnn = fv.nn.lstm(root / "b", 3, 4, weight_init=fv.init.zeros(), bias_init=fv.init.constant(2.0))
    assert bounds(rnn.weight_hh_l0) == (0.0, 0.0)
    assert bounds(rnn.bias_hh_l0) == (2.0, 2.0)


def test_no_random_number_of_torch_is_drawn() -> None:
    before = torch.get_rng_state()
    root = fv.VarStore().root()
    fv.nn.linear(root, 3, 2)
    fv.nn.conv1d(root, 3, 4, 2)
    fv.nn.batch_norm2d(root, 4)
    fv.nn.embedding(root, 5, 4, padding_idx=1)
    fv.nn.lstm(root, 3, 4)
    assert torch.equal(torch.get_rng_state(), before)
