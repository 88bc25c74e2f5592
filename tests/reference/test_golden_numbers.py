"""Numbers that the tests of tch-rs and candle assert, on the same data with the same steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import flatvars as fv


def fit(optimizer: fv.optim.Optimizer, foo: Tensor, bar: Tensor, target: float) -> None:
    for _ in range(99):
        optimizer.backward_step(F.mse_loss(foo + bar, torch.tensor(target)))


def shown(foo: Tensor, bar: Tensor) -> tuple[str, str]:
    return f"{foo.item():.2f}", f"{bar.item():.2f}"


@pytest.mark.row("T-G-01")
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_learning_rates_of_groups(mode: str) -> None:
    store = fv.VarStore(grads=mode)
    optimizer = fv.optim.SGD(store, lr=1.0)
    foo = store.root().set_group(0).zeros("foo", ())
    bar = store.root().set_group(7).zeros("bar", ())
    optimizer.set_lr(0.1)
    optimizer.set_lr_group(0, 0.0)
    fit(optimizer, foo, bar, 0.42)
    assert shown(foo, bar) == ("0.00", "0.42")
    optimizer.set_lr_group(0, 0.1)
    fit(optimizer, foo, bar, 0.0)
    assert shown(foo, bar) == ("-0.21", "0.21")
    optimizer.set_lr_group(7, 0.0)
    fit(optimizer, foo, bar, 0.22)
    assert shown(foo, bar) == ("0.01", "0.21")
    optimizer.set_lr(0.0)
    fit(optimizer, foo, bar, 0.42)
    assert shown(foo, bar) == ("0.01", "0.21")
    optimizer.set_lr(0.1)
    fit(optimizer, foo, bar, 0.42)
    assert shown(foo, bar) == ("0.11", "0.31")


@pytest.mark.row("T-G-02")
def test_weight_decay_of_groups() -> None:
    store = fv.VarStore()
    optimizer = fv.optim.SGD(store, lr=0.0)
    optimizer.set_lr(0.1)
    foo = store.root().set_group(0).zeros("foo", ())
    bar = store.root().set_group(7).zeros("bar", ())
    fit(optimizer, foo, bar, 1.0)
    assert shown(foo, bar) == ("0.50", "0.50")
    optimizer.set_weight_decay(0.1)
    fit(optimizer, foo, bar, 1.0)
    assert shown(foo, bar) == ("0.49", "0.49")
    assert round(foo.item(), 4) == round(bar.item(), 4) == 0.4878
    optimizer.set_weight_decay_group(7, 0.0)
    fit(optimizer, foo, bar, 1.0)
    assert (round(foo.item(), 4), round(bar.item(), 4)) == (0.3025, 0.6898)


@pytest.mark.row("T-G-03")
def test_linear_fit() -> None:
    xs = torch.arange(1.0, 15.0).view(-1, 1)
    ys = xs * 0.42 + 1.337
    store = fv.VarStore()
    optimizer = fv.optim.SGD(store, lr=0.0)
    zeros = fv.init.constant(0.0)
    linear = fv.nn.linear(store.root(), 1, 1, weight_init=zeros, bias_init=zeros)

    def loss() -> Tensor:
        return F.mse_loss(linear(xs), ys)

    initial = loss().item()
    assert round(initial, 4) == 22.9997
    optimizer.set_lr(1e-2)
    for _ in range(49):
        optimizer.backward_step(loss())
    assert round(loss().item(), 4) == 0.2374
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
    assert loss().item() == initial
    optimizer.set_lr(1e-10)
    for _ in range(49):
        optimizer.backward_step(loss())
    # tch asserts the upper bound alone. The loss falls by 49 lr |gradient|^2, which is 3.2e-5.
    assert -5e-5 < loss().item() - initial < 1e-5


@pytest.mark.row("T-G-04")
@pytest.mark.parametrize("gathered", [False, True], ids=["scattered", "gathered"])
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_clipping(mode: str, gathered: bool) -> None:
    store = fv.VarStore(grads=mode)
    optimizer = fv.optim.SGD(store, lr=1e-2)
    root = store.root()
    v1, v2 = root.ones("v1", (2,)), root.ones("v2", (1,))
    v3 = root.var("v3", (2,), fv.init.constant(-1.0))

    def backward() -> None:
        optimizer.zero_grad()
        torch.cat([v1, 2 * v2, 2 * v3]).square().sum().backward()
        if gathered:
            store.accumulate()

    def grads() -> list[list[float]]:
        return [[round(x, 4) for x in v.grad.tolist()] for v in store.trainable_variables() if v.grad is not None]

    backward()
    assert grads() == [[2.0, 2.0], [8.0], [-8.0, -8.0]]
    optimizer.clip_grad_value(4.0)
    assert grads() == [[2.0, 2.0], [4.0], [-4.0, -4.0]]
    backward()
    norm = optimizer.clip_grad_norm(1.0)
    assert grads() == [[0.1414, 0.1414], [0.5657], [-0.5657, -0.5657]]
    assert norm.item() == pytest.approx(200**0.5)


@pytest.mark.row("C-07")
def test_linear_regression_of_candle() -> None:
    xs = torch.tensor([[2.0, 1.0], [7.0, 4.0], [-4.0, 12.0], [5.0, 8.0]])
    ys = xs @ torch.tensor([[3.0], [1.0]]) - 2.0
    store = fv.VarStore()
    weight, bias = store.root().zeros("weight", (1, 2)), store.root().zeros("bias", ())
    optimizer = fv.optim.AdamW(store, lr=0.1)
    for _ in range(100):
        optimizer.backward_step((xs @ weight.t() + bias - ys).square().sum())
    assert [round(x, 4) for x in weight.flatten().tolist()] == [2.7257, 0.7097]
    assert round(bias.item(), 4) == 0.7873


@pytest.mark.row("C-07")
def test_defaults_and_variables_that_are_not_floating() -> None:
    """AdamW's decay is 0.01; integers are left out, and so is SGD's momentum."""
    store = fv.VarStore()
    store.root().zeros("weight", (3,))
    store.add("count", torch.arange(3), trainable=False)
    adamw, sgd = fv.optim.AdamW(store), fv.optim.SGD(store)
    assert adamw.defaults["lr"] == 1e-3
    assert adamw.defaults["weight_decay"] == 0.01
    assert sgd.defaults["momentum"] == 0.0
    assert [v.name for v in adamw.trainable_variables()] == ["weight"]
    adamw.backward_step(store["weight"].param.sum())
    assert store["count"].value.tolist() == [0, 1, 2]
    assert store["weight"].value.tolist() == pytest.approx([-1e-3] * 3)
