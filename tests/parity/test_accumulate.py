"""Micro-batches: accumulate(scale=1/k) against torch's loss / k, in full precision for narrow variables."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.support.models import MIXTURE, Bag, Chain

from .pairs import MODES, NORM_TOLERANCE, OPTIMIZERS, Pair, assert_close

SHAPES = {"a": (2,), "b": (3, 3), "c": (), "d": (66_000,)}


def micro_batches(pair: Pair, count: int, generator: torch.Generator) -> None:
    """Ours by accumulate, the twin by dividing the loss."""
    for _ in range(count):
        x = torch.randn(2, 4, generator=generator)
        pair.ours(x).square().sum().backward()
        pair.store.accumulate(scale=1 / count)
        (pair.theirs(x).square().sum() / count).backward()


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "lion"])
def test_scaled_micro_batches_follow_a_divided_loss(optimizer: str, count: int) -> None:
    pair = Pair.of(Chain(), optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        micro_batches(pair, count, generator)
        pair.step()
        pair.ref.zero_grad()
    pair.assert_values_close()
    pair.assert_states_close()


def test_the_norm_and_clipping_see_the_sum() -> None:
    pair = Pair.of(Chain(), "adamw", max_norm=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        micro_batches(pair, 4, generator)
        expected = nn.utils.clip_grad_norm_(pair.theirs.parameters(), 0.1)
        torch.testing.assert_close(pair.store.grad_norm(), expected, rtol=NORM_TOLERANCE, atol=0.0)
        pair.step()
        torch.testing.assert_close(pair.opt.grad_norm, expected, rtol=NORM_TOLERANCE, atol=0.0)
        pair.ref.zero_grad()
    pair.assert_values_close()


@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adamw"])
def test_layers_that_some_micro_batches_skip(optimizer: str) -> None:
    """One that none of them uses is untouched, in the middle of those that are."""
    pair = Pair.of(Chain(depth=4), optimizer)
    generator = torch.Generator().manual_seed(1)
    for rounds in ([[0, 1, 2, 3], [0, 3]], [[0, 3], [1, 0]], [[2], [2]], [[0, 1, 2, 3]]):
        for active in rounds:
            pair.ours.active = pair.theirs.active = active
            micro_batches(pair, 1, generator)
        pair.step()
        pair.ref.zero_grad()
    pair.assert_values_close()
    pair.assert_states_close()


def test_a_gradient_left_after_the_last_accumulate_counts() -> None:
    pair = Pair.of(Chain(), "adamw")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        micro_batches(pair, 1, generator)
        pair.both(lambda net: net(torch.ones(1, 4)).sum())
        pair.step()
        pair.zero_grad()
    pair.assert_values_close()


def test_a_step_ends_the_cycle() -> None:
    pair = Pair.of(Bag(SHAPES), "sgd")
    for value in (1.0, 2.0):
        pair.store.accumulate({name: torch.full(shape, value) for name, shape in SHAPES.items()})
        for param in pair.theirs.parameters():
            param.grad = torch.full_like(param, value)
        pair.step()
    assert pair.store.grads_of(torch.float32).max() == 2.0
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("caller", ["store", "optimizer"])
def test_zero_grad_drops_an_unfinished_cycle(caller: str, mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode)
    pair.ours(torch.ones(1, 4)).sum().backward()
    pair.store.accumulate()
    (pair.store if caller == "store" else pair.opt).zero_grad()
    assert all(variable.grad is None for variable in pair.store.variables().values())
    pair.both(lambda net: net(torch.ones(1, 4)).square().sum())
    pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_gradients_divided_by_the_loss_in_both_modes(mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode)
    for _ in range(3):
        for _ in range(4):
            pair.both(lambda net: net(torch.ones(1, 4)).square().sum() / 4)
            pair.store.accumulate()
        pair.step()
        pair.zero_grad()
    pair.assert_values_close()


def test_views_cannot_be_scaled_afterwards() -> None:
    pair = Pair.of(Chain(), mode="views")
    pair.both(lambda net: net(torch.ones(1, 4)).sum())
    before = pair.store.grads.clone()
    with pytest.raises(fv.GradientError, match=r"scale=0\.5.*scale the loss.*grads=\"gather\""):
        pair.store.accumulate(scale=0.5)
    assert torch.equal(pair.store.grads, before)


def narrow_sums(dtype: torch.dtype, count: int) -> tuple[Pair, dict[str, Tensor]]:
    """The same `count` gradients to a pair of low precision, and their mean in float64."""
    pair = Pair.of(Bag(SHAPES, [dtype]), "adamw")
    generator = torch.Generator().manual_seed(1)
    exact = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for _ in range(count):
        pair.backward(generator)
        for name, param in pair.ours.named_parameters():
            exact[name] += param.grad.double() / count
        pair.store.accumulate(scale=1 / count)
    return pair, exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_narrow_variables_accumulate_in_float32(dtype: torch.dtype) -> None:
    """64 terms of size 1: torch's sum in bfloat16 is off by its rounding, ours by float32's."""
    pair, exact = narrow_sums(dtype, count=64)
    assert pair.store.grads.dtype == torch.float32
    for name, mean in exact.items():
        torch.testing.assert_close(pair.store[name].grad.double(), mean, rtol=1e-5, atol=1e-6)
    theirs = pair.theirs.d.grad.double() / 64
    our_error = (pair.store["d"].grad.double() - exact["d"]).norm()
    assert our_error < 1e-3 * (theirs - exact["d"]).norm()
    expected = torch.cat([mean.flatten() for mean in exact.values()]).norm()
    assert pair.store.grad_norm().item() == pytest.approx(expected.item(), rel=NORM_TOLERANCE)


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_a_step_of_bfloat16_variables_uses_the_float32_sum(optimizer: str) -> None:
    """As if a float32 gradient were given to torch's step of a float32 copy, rounded once."""
    pair = Pair.of(Bag(SHAPES, [torch.bfloat16]), optimizer)
    wide = copy.deepcopy(pair.theirs).float()
    ref = type(pair.ref)(wide.parameters(), **OPTIMIZERS[optimizer][2])
    generator = torch.Generator().manual_seed(1)
    for _ in range(16):
        pair.backward(generator)
        pair.store.accumulate(scale=1 / 16)
    for name, param in wide.named_parameters():
        param.grad = pair.store[name].grad.clone()
    pair.opt.step()
    ref.step()
    for name, param in wide.named_parameters():
        # One rounding to bfloat16; float32 on its two sides may lie on the two sides of a tie.
        differing = (pair.ours.get_parameter(name) != param.bfloat16()).double().mean()
        assert differing <= 1e-4, name


def given(generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=generator) for name, shape in MIXTURE.items()}


@pytest.mark.parametrize("form", ["mapping", "sequence"])
@pytest.mark.parametrize("mode", MODES)
def test_explicit_gradients(mode: str, form: str) -> None:
    """As torch.func.grad makes them; `row` never has one, and what is given twice adds up."""
    pair = Pair.of(Bag(MIXTURE), "adamw", mode)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for _ in range(2):
            grads = given(generator)
            del grads["row"]
            listed = [grads.get(name) for name in MIXTURE]
            pair.store.accumulate(grads if form == "mapping" else listed)
            for name, grad in grads.items():
                param = pair.theirs.get_parameter(name)
                param.grad = grad.clone() if param.grad is None else param.grad + grad
        pair.step()
        pair.zero_grad()
    assert pair.opt.state[pair.ours.row] == {}
    pair.assert_values_close()


def test_explicit_gradients_are_scaled_and_left_alone() -> None:
    pair = Pair.of(Bag(SHAPES))
    grads = {name: torch.full(shape, 3.0) for name, shape in SHAPES.items()}
    kept = {name: grad.clone() for name, grad in grads.items()}
    pair.ours.a.grad = torch.ones(2)
    pair.store.accumulate(grads, scale=0.5)
    assert torch.equal(pair.ours.a.grad, torch.ones(2))
    pair.ours.a.grad = None
    for name, grad in grads.items():
        assert torch.equal(grad, kept[name])
        assert_close(pair.store[name].grad, 0.5 * kept[name], name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["store", "torch"])
def test_a_sequence_names_the_variables_that_require_gradients(how: str, mode: str) -> None:
    pair = Pair.of(Bag(SHAPES), mode=mode)
    if how == "store":
        pair.store.freeze("b")
    else:
        pair.ours.b.requires_grad_(False)
    # What the store froze is still one of its trainable variables; what plain torch froze is not.
    names = ["a", "b", "c", "d"] if how == "store" else ["a", "c", "d"]
    assert [variable.name for variable in pair.store.trainable_variables()] == names
    pair.store.accumulate([torch.ones(SHAPES[name]) for name in names])
    assert torch.equal(pair.store["d"].grad, torch.ones(66_000))
    assert pair.store["b"].grad is None
    assert list(pair.store.norms()) == ["a", "c", "d"]


def test_looking_at_a_gradient_does_not_gather_it() -> None:
    """It did, with a scale of 1, so that `accumulate(scale)` found nothing left to scale."""
    store = fv.VarStore()
    weight = store.root().zeros("w", (3,))
    weight.grad = torch.ones(3)
    store.accumulate(scale=0.5)
    weight.grad = torch.ones(3)
    assert store["w"].grad is not None
    assert store["w"].grad.tolist() == [1.5] * 3
    assert weight.grad is not None
    store.accumulate(scale=0.5)
    assert store["w"].grad.tolist() == [1.0] * 3
