"""Declaring is deferred: any number of declarations is one carve, and values are there at once."""

from __future__ import annotations

import pytest
import torch

import flatvars as fv
from flatvars import backend
from flatvars.memory import streams

FEW, MANY = 1_000, 10_000


class Carves:
    """How often streams were made, and how many bytes of values they had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = streams.Streams.recarve

        def counted(this: streams.Streams, *args: object, **kwargs: object) -> streams.Streams:
            self.count += 1
            return original(this, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(streams.Streams, "recarve", counted)


def test_a_thousand_variables_are_one_carve(monkeypatch: pytest.MonkeyPatch) -> None:
    carves = Carves(monkeypatch)
    store = fv.VarStore(seed=3)
    made = [(store.root() / "layer" / i).randn_standard("w", (16,)) for i in range(FEW)]
    assert carves.count == 0
    flat = store.values
    assert carves.count == 1
    assert len(flat) == FEW * 32
    assert made[-1].data_ptr() == flat.data_ptr() + (FEW - 1) * 32 * 4
    assert float(flat.std()) == pytest.approx(0.5**0.5, rel=0.02)
    store.root().zeros("one_more", (1,))
    fv.optim.SGD(store, lr=0.1).step()
    assert carves.count == 2
    store.check()


def test_values_are_there_before_the_carve_and_writes_to_them_are_kept() -> None:
    store = fv.VarStore()
    weight = store.root().ones("w", (3,))
    assert weight.tolist() == [1.0] * 3
    with torch.no_grad():
        weight[1] = 5.0
    weight.sum().backward()
    grad = weight.grad
    assert store.values[:3].tolist() == [1.0, 5.0, 1.0]
    assert weight.grad is grad
    assert weight.data_ptr() == store.values.data_ptr()


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.values,
        lambda store: store.grads,
        lambda store: store.regions,
        lambda store: store.grad_norm(),
        lambda store: store.freeze(),
        lambda store: store.half(),
        lambda store: store["w"].span,
        lambda store: store.check() or store.summary(),
        lambda store: store.rebind(),
        lambda store: store.restore_aliases(),
        lambda store: store.compact(),
    ],
    ids=[
        "values",
        "grads",
        "regions",
        "grad_norm",
        "freeze",
        "half",
        "span",
        "summary",
        "rebind",
        "restore",
        "compact",
    ],
)
def test_whatever_needs_the_buffers_carves(ask: object) -> None:
    store = fv.VarStore()
    weight = store.root().ones("w", (3,))
    ask(store)  # type: ignore[operator]
    (region,) = store.regions
    assert region.numel == (64 if region.dtype == torch.float16 else 32)
    assert weight.data_ptr() == store.values.data_ptr()
    assert weight.tolist() == [1.0] * 3


def test_gradients_of_views_mode_start_with_the_carve() -> None:
    store = fv.VarStore(grads="views")
    weight = store.root().ones("w", (3,))
    (weight * 2.0).sum().backward()
    optimizer = fv.optim.SGD(store, lr=1.0)
    optimizer.step()
    assert weight.tolist() == [-1.0] * 3
    assert weight.grad is not None
    assert weight.grad.data_ptr() == store.grads.data_ptr()


def test_a_store_that_is_gone_says_so() -> None:
    variable = (lambda store: (store.root().ones("w", (2,)), store["w"])[1])(fv.VarStore())
    assert variable.value.tolist() == [1.0, 1.0]
    with pytest.raises(fv.FlatvarsError, match="the store of variable 'w' is gone; keep the VarStore"):
        _ = variable.span


@pytest.mark.row("T-VS-23")
def test_ten_thousand_variables_in_a_block_are_one_carve_and_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    carves = Carves(monkeypatch)
    fills: list[int] = []
    launch = backend.fill_

    def counted(stream: torch.Tensor, chosen: list[backend.Fill], seed: int) -> None:
        fills.append(len(chosen))
        launch(stream, chosen, seed)

    monkeypatch.setattr(backend, "fill_", counted)
    store = fv.VarStore(seed=3)
    with store.declaring():
        for i in range(MANY):
            (store.root() / "layer" / i).randn_standard("w", (16,))
        store.root().ones_no_train("mean", (3,))
    assert (carves.count, fills) == (1, [MANY + 1])
    alone = fv.VarStore(seed=3)
    assert torch.equal((alone.root() / "layer" / 77).randn_standard("w", (16,)), store["layer.77.w"].value)
    assert store["mean"].value.tolist() == [1.0] * 3
    store.check()


def test_a_block_that_fails_leaves_no_variable_without_values() -> None:
    store = fv.VarStore()
    made = []

    def declare() -> None:
        with store.declaring():
            made.append(store.root().ones("w", (300,)))
            store.root().ones("", (1,))

    with pytest.raises(fv.SpecError, match="is empty"):
        declare()
    (weight,) = made
    assert weight.tolist() == [1.0] * 300
    assert store.root().ones("v", (2,)).tolist() == [1.0] * 2


@pytest.mark.row("D-02", "T-I-09")
def test_reinit_reproduces_first_values_and_takes_another_seed() -> None:
    store = fv.VarStore(seed=5)
    weight = store.root().randn_standard("w", (40,))
    store.root().ones_no_train("var", (3,))
    first = weight.detach().clone()
    optimizer = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    store["var"].value.fill_(7.0)
    store.reinit()
    assert torch.equal(weight, first)
    assert store["var"].value.tolist() == [1.0] * 3
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1.0] * 40
    store.reinit(seed=6, selector="w")
    assert not torch.equal(weight, first)
    assert torch.equal(weight, fv.VarStore(seed=6).root().randn_standard("w", (40,)))
    store.add("given", torch.ones(2))
    store.reinit()
    assert store["given"].value.tolist() == [1.0] * 2
    with pytest.raises(fv.InitError, match="no initializer wrote 'given'"):
        store.reinit(selector="*")
    assert torch.equal(weight, first)
    loss = (weight**2).sum()
    store.reinit(7)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
