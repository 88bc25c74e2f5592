"""Clipping by an optimizer, against torch.nn.utils on a twin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import flatvars as fv

from .material import make, two_groups

MODES = pytest.mark.parametrize("mode", ["gather", "views"])


GATHERED = pytest.mark.parametrize("gathered", [False, True], ids=["scattered", "gathered"])


class Twins:
    """Variables of odd shapes in a store, the last without a gradient, and plain copies of them."""

    def __init__(self, mode: str = "gather", dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
        self.store = fv.VarStore(grads=mode)
        self.theirs = []
        for i, shape in enumerate([(7, 5), (), (0,), (33,), (4,)]):
            values = torch.randn(shape, dtype=dtypes[i % len(dtypes)])
            self.theirs.append(nn.Parameter(values.clone()))
            self.store.add(f"v{i}", values)
        self.ours = [v.param for v in self.store.trainable_variables()]
        self.optimizer = fv.optim.SGD(self.store, lr=0.1)
        self.reference = torch.optim.SGD(self.theirs, lr=0.1)

    def loss(self, params: list[Tensor], scale: float = 5.0) -> Tensor:
        return sum((scale * p * p).sum().float() for p in params[:-1])  # type: ignore[return-value]

    def backward(self, gathered: bool = False) -> None:
        self.loss(self.ours).backward()
        self.loss(self.theirs).backward()
        if gathered:
            self.store.accumulate()

    def assert_same_gradients(self) -> None:
        for variable, param in zip(self.store.trainable_variables(), self.theirs, strict=True):
            assert (variable.grad is None) == (param.grad is None)
            if param.grad is not None:
                torch.testing.assert_close(variable.grad.to(param.dtype), param.grad, equal_nan=True)

    def assert_same_values(self) -> None:
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=2e-6, atol=5e-7)


@pytest.mark.row("T-O-14")
@MODES
@GATHERED
def test_clip_grad_value(gathered: bool, mode: str) -> None:
    twins = Twins(mode)
    twins.backward(gathered)
    twins.optimizer.clip_grad_value(3.0)
    clip_grad_value_(twins.theirs, 3.0)
    twins.assert_same_gradients()
    twins.optimizer.step()
    twins.reference.step()
    twins.assert_same_values()
    twins.store.check()


@pytest.mark.row("T-O-15")
@MODES
@GATHERED
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6], ids=["zero", "clipped", "untouched"])
def test_clip_grad_norm(max_norm: float, gathered: bool, mode: str) -> None:
    twins = Twins(mode)
    twins.backward(gathered)
    norm = twins.optimizer.clip_grad_norm(max_norm)
    torch.testing.assert_close(norm, clip_grad_norm_(twins.theirs, max_norm))
    twins.assert_same_gradients()
    twins.optimizer.step()
    twins.reference.step()
    twins.assert_same_values()
    twins.store.check()


@pytest.mark.row("T-O-15")
def test_clip_grad_norm_over_dtypes() -> None:
    twins = Twins(dtypes=(torch.float32, torch.bfloat16, torch.float64))
    twins.backward()
    torch.testing.assert_close(twins.optimizer.clip_grad_norm(0.5), clip_grad_norm_(twins.theirs, 0.5))
    twins.assert_same_gradients()


@pytest.mark.row("T-O-15")
@MODES
@GATHERED
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=["nan", "inf"])
def test_norms_that_are_not_finite(poison: float, gathered: bool, mode: str) -> None:
    """tch leaves the gradients as they are; torch makes NaN of them, and so does flatvars."""
    twins = Twins(mode)
    twins.backward()
    for grad in (twins.ours[0].grad, twins.theirs[0].grad):
        grad[2, 3] = poison
    if gathered:
        twins.store.accumulate()
    norm = twins.optimizer.clip_grad_norm(1.0)
    torch.testing.assert_close(norm, clip_grad_norm_(twins.theirs, 1.0), equal_nan=True)
    twins.assert_same_gradients()
    twins.optimizer.zero_grad()
    twins.store.check()


@pytest.mark.row("T-O-14")
@pytest.mark.row("T-O-15")
def test_without_any_gradient() -> None:
    """tch panics; torch returns a zero."""
    twins = Twins()
    twins.optimizer.clip_grad_value(1.0)
    assert twins.optimizer.clip_grad_norm(1.0).item() == 0.0
    assert twins.store.gradient_names() == []


@pytest.mark.row("T-O-14")
@pytest.mark.row("T-O-15")
def test_gradients_of_other_optimizers_are_left() -> None:
    store = fv.VarStore()
    a, b = store.root().ones("a", (2,)), store.root().ones("b", (2,))
    first = fv.optim.SGD([{"params": "a"}], store=store)
    (3.0 * a + 4.0 * b).sum().backward()
    assert first.clip_grad_norm(1.0).item() == pytest.approx(3.0 * 2**0.5)
    assert b.grad is not None
    assert b.grad.tolist() == [4.0, 4.0]
    first.clip_grad_value(0.5)
    assert store["a"].grad.tolist() == [0.5, 0.5]
    assert store["b"].grad.tolist() == [4.0, 4.0]


@pytest.mark.row("T-O-14")
@pytest.mark.row("T-O-15")
def test_sparse_gradients() -> None:
    store = fv.VarStore()
    table = fv.nn.embedding(store.root(), 6, 3, sparse=True)
    twin = nn.Embedding(6, 3)
    twin.load_state_dict(table.state_dict())
    optimizer = fv.optim.SGD(store, lr=0.1)
    for module in (table, twin):
        (4.0 * module(torch.tensor([1, 1, 4]))).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    torch.testing.assert_close(optimizer.clip_grad_norm(2.0), clip_grad_norm_(twin.parameters(), 2.0))
    torch.testing.assert_close(store["weight"].grad, twin.weight.grad)


@pytest.mark.row("T-O-14")
@pytest.mark.row("T-O-15")
@pytest.mark.row("T-O-18")
@pytest.mark.row("T-O-19")
@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_limits_below_zero_are_refused(bad: float) -> None:
    twins = Twins()
    before = twins.store.ravel()
    for call in (twins.optimizer.clip_grad_value, twins.optimizer.clip_grad_norm):
        with pytest.raises(ValueError, match=r"Invalid max_\w+ value"):
            call(bad)
    for step in (twins.optimizer.backward_step_clip, twins.optimizer.backward_step_clip_norm):
        with pytest.raises(ValueError, match=r"Invalid max_\w+ value"):
            step(twins.loss(twins.ours), bad)
    assert torch.equal(twins.store.ravel(), before)
    assert twins.store.gradient_names() == []


@pytest.mark.row("T-O-18")
@MODES
def test_backward_step_clip(mode: str) -> None:
    twins = Twins(mode)
    for _ in range(3):
        twins.optimizer.backward_step_clip(twins.loss(twins.ours), 2.0)
        twins.reference.zero_grad()
        twins.loss(twins.theirs).backward()
        clip_grad_value_(twins.theirs, 2.0)
        twins.reference.step()
    twins.assert_same_values()


@pytest.mark.row("T-O-19")
@MODES
@pytest.mark.parametrize("own", [None, 0.2, 9.0])
def test_backward_step_clip_norm(own: float | None, mode: str) -> None:
    """An optimizer's own `max_norm` holds as well: the smaller of the two."""
    twins = Twins(mode)
    twins.optimizer = fv.optim.SGD(twins.store, lr=0.1, max_norm=own)
    for _ in range(3):
        twins.optimizer.backward_step_clip_norm(twins.loss(twins.ours), 0.7)
        twins.reference.zero_grad()
        twins.loss(twins.theirs).backward()
        norm = clip_grad_norm_(twins.theirs, min(0.7, own or 0.7))
        torch.testing.assert_close(twins.optimizer.grad_norm, norm)
        twins.reference.step()
    assert twins.optimizer.max_norm == own
    twins.assert_same_values()


@pytest.mark.row("T-O-19")
def test_max_norm_is_back_after_an_error() -> None:
    twins = Twins()
    with pytest.raises(RuntimeError, match="does not require grad"):
        twins.optimizer.backward_step_clip_norm(torch.zeros(()), 0.5)
    assert twins.optimizer.max_norm is None


@pytest.mark.row("T-O-21")
def test_clipping_is_an_argument_of_the_optimizer() -> None:
    """ocaml-torch gives it to `step`; here it is `max_norm=`, inside the step."""
    store, a, b = two_groups()
    optimizer = make("sgd", store, momentum=0.0, max_norm=0.5)
    optimizer.backward_step((3.0 * a).sum() + 0.0 * b.sum())
    torch.testing.assert_close((1.0 - a.detach()).norm(), torch.tensor(0.05))


@pytest.mark.row("J-09")
def test_the_clip_coefficient_is_torchs() -> None:
    """Refused on purpose: optax divides by the norm itself, torch by norm + 1e-6, and results here are torch's."""
    store = fv.VarStore()
    weight = store.root().zeros("weight", (1,))
    fv.optim.SGD(store, lr=1.0).backward_step_clip_norm((1e-6 * weight).sum(), 1e-7)
    assert weight.item() == pytest.approx(-1e-6 * 1e-7 / (1e-6 + 1e-6), rel=1e-5)
