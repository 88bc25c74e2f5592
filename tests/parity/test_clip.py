"""Clipping against torch.nn.utils: inside the step, and of the gradients themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import flatvars as fv
from tests.support.models import MIXTURE, Bag

from .pairs import MODES, NORM_TOLERANCE, TOLERANCES, Pair, assert_close

# Empty variables are left out where torch cannot take the norm: the maximum of nothing.
SHAPES = {name: shape for name, shape in MIXTURE.items() if 0 not in shape}
ORDERS = [0.5, 1.0, 2.0, 3.0, math.inf]


def graded(shapes: dict[str, tuple[int, ...]], mode: str, optimizer: str | None = None, **options: object) -> Pair:
    """A pair with one random gradient everywhere except in `row`."""
    pair = Pair.of(Bag(shapes), optimizer, mode, **options)
    pair.backward(torch.Generator().manual_seed(3), skip={"row"})
    return pair


def assert_same_gradients(pair: Pair) -> None:
    for name, param in pair.theirs.named_parameters():
        grad = pair.store[name].grad
        assert (grad is None) == (param.grad is None), name
        if grad is not None:
            rtol, atol = TOLERANCES[param.dtype]
            torch.testing.assert_close(grad, param.grad, rtol=rtol, atol=atol, equal_nan=True, msg=name)


@pytest.mark.row("P-G-13")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6], ids=["zero", "clipped", "untouched"])
def test_store_clip_grad_norm(max_norm: float, order: float, mode: str) -> None:
    pair = graded(SHAPES, mode)
    # In double precision: torch's own sums of many powers are off by more than the tolerance in float32.
    grads = [param.grad.double() for param in pair.theirs.parameters() if param.grad is not None]
    exact = torch.nn.utils.get_total_norm(grads, order)
    clip_grad_norm_(pair.theirs.parameters(), max_norm, order)
    norm = pair.store.clip_grad_norm_(max_norm, order)
    torch.testing.assert_close(norm, exact.to(norm.dtype), rtol=5e-6, atol=0.0)
    assert_same_gradients(pair)


@pytest.mark.parametrize("order", [-math.inf, -1.0, 0.0])
def test_unusual_orders_ignore_variables_without_gradient(order: float) -> None:
    pair = graded(SHAPES, "gather")
    expected = torch.nn.utils.get_total_norm(
        [param.grad for param in pair.theirs.parameters() if param.grad is not None], order
    )
    torch.testing.assert_close(pair.store.grad_norm(order), expected, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("mode", MODES)
def test_store_clip_grad_value(mode: str) -> None:
    pair = graded(MIXTURE, mode)
    clip_grad_value_(pair.theirs.parameters(), 0.3)
    pair.store.clip_grad_value_(0.3)
    assert_same_gradients(pair)


@pytest.mark.parametrize("mode", MODES)
# None with coupled decay: where the clipped gradient and the decay cancel, Adam divides one rounding error by another.
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "adamw-amsgrad", "lion"])
@pytest.mark.parametrize("max_norm", [0.7, 1e6], ids=["clipped", "untouched"])
def test_max_norm_in_the_step(max_norm: float, optimizer: str, mode: str) -> None:
    pair = Pair.of(Bag(MIXTURE), optimizer, mode, max_norm=max_norm)
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        pair.zero_grad()
        pair.backward(generator, skip={"row"})
        grads = {name: param.grad.clone() for name, param in pair.theirs.named_parameters() if name != "row"}
        expected = clip_grad_norm_(pair.theirs.parameters(), max_norm)
        pair.step()
        torch.testing.assert_close(pair.opt.grad_norm, expected, rtol=NORM_TOLERANCE, atol=0.0)
        for name, grad in grads.items():
            assert torch.equal(pair.store[name].grad, grad), f"the step rewrote the gradient of {name!r}"
    pair.assert_values_close()


def test_max_norm_in_float64() -> None:
    pair = Pair.of(Bag(MIXTURE, [torch.float64]), "adamw", max_norm=0.7)
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        pair.zero_grad()
        pair.backward(generator)
        clip_grad_norm_(pair.theirs.parameters(), 0.7)
        pair.step()
    pair.assert_values_close()


def test_max_norm_spans_dtypes() -> None:
    pair = Pair.of(Bag(SHAPES, [torch.float32, torch.float64]), "sgd", max_norm=0.7)
    pair.backward(torch.Generator().manual_seed(5))
    expected = math.sqrt(sum(param.grad.double().square().sum().item() for param in pair.theirs.parameters()))
    pair.opt.step()
    assert pair.opt.grad_norm.item() == pytest.approx(expected, rel=1e-6)
    assert pair.store.grad_norm().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.row("P-G-13")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "minus-inf"])
def test_nonfinite_gradients_are_poisoned_as_torch_does(poison: float, mode: str) -> None:
    pair = graded(SHAPES, mode)
    for module in (pair.ours, pair.theirs):
        module.primes.grad[3, 4] = poison
    expected = clip_grad_norm_(pair.theirs.parameters(), 1.0)
    torch.testing.assert_close(pair.store.clip_grad_norm_(1.0), expected, equal_nan=True)
    assert_same_gradients(pair)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=["nan", "inf"])
def test_clipped_nan_does_not_outlive_zero_grad(poison: float, mode: str) -> None:
    """The norm multiplies the whole stream: what lies between variables must stay zero."""
    pair = graded(SHAPES, mode, "sgd", max_norm=1.0)
    pair.ours.primes.grad[3, 4] = poison
    pair.store.clip_grad_norm_(1.0)
    pair.zero_grad()
    pair.backward(torch.Generator().manual_seed(4))
    pair.store.accumulate()
    expected = clip_grad_norm_(pair.theirs.parameters(), 1.0)
    torch.testing.assert_close(pair.store.grad_norm(), expected, rtol=NORM_TOLERANCE, atol=0.0)
    pair.step()
    pair.assert_values_close()
    pair.store.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=["nan", "inf"])
def test_error_if_nonfinite_leaves_gradients(poison: float, mode: str) -> None:
    pair = graded(SHAPES, mode)
    pair.ours.primes.grad[3, 4] = poison
    before = {name: grad.clone() for name in SHAPES if (grad := pair.store[name].grad) is not None}
    with pytest.raises(fv.GradientError, match=r"norm of order 2.0 is (nan|inf).*store\.norms\(\)"):
        pair.store.clip_grad_norm_(1.0, error_if_nonfinite=True)
    for name, grad in before.items():
        torch.testing.assert_close(pair.store[name].grad, grad, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.float32, torch.bfloat16]], ids=["uniform", "mixed"])
def test_skip_nonfinite_changes_nothing(dtypes: list[torch.dtype], mode: str) -> None:
    pair = Pair.of(Bag(SHAPES, dtypes), "adamw", mode, skip_nonfinite=True)
    pair.run(2)
    before = {name: param.detach().clone() for name, param in pair.ours.named_parameters()}
    states = {i: {k: v.clone() for k, v in state.items()} for i, state in pair.opt.state_dict()["state"].items()}
    pair.opt.zero_grad()
    pair.backward(torch.Generator().manual_seed(4))
    pair.ours.primes.grad[0, 0] = math.nan
    pair.opt.step()
    assert pair.opt.skipped.item() == 1
    for name, param in pair.ours.named_parameters():
        assert torch.equal(param, before[name])
    for i, state in pair.opt.state_dict()["state"].items():
        assert all(torch.equal(value, states[i][key]) for key, value in state.items())
    pair.run(1, seed=9)
    assert pair.opt.skipped.item() == 1
    if len(dtypes) == 1:
        pair.assert_values_close()


def test_norms_per_variable() -> None:
    pair = graded(SHAPES, "gather")
    norms = pair.store.norms()
    assert norms["row"][1] is None
    for name, param in pair.theirs.named_parameters():
        assert_close(norms[name][0], param.detach().norm(), name)
        if param.grad is not None:
            assert_close(norms[name][1], param.grad.norm(), name)
