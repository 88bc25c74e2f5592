"""Masked elements: torch.optim on a twin whose masked elements are put back after every step, value and state.

What one launch does with them, for every rule, dtype and bad gradient, is in `tests/kernels/test_masks.py`; the life
of a mask in `tests/integration`, its way into files in `tests/checkpoint`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from tests.support.masks import every_other, last, nothing, rows
from tests.support.models import Bag
from tests.support.tolerances import assert_same_bits

from .pairs import FLAVOR, MODES, NORM_TOLERANCE, OPTIMIZERS, Pair, assert_close
from .test_groups import CLASSES, TRUTH

Masks = Mapping[str, Tensor]

# Masked and not, side by side; the large ones have many tiles.
SHAPES = {"a": (2,), "emb": (11, 4), "b": (3, 3), "c": (), "big": (260, 270), "d": (33,), "e": (66_000,), "f": (5,)}
MASKS = {
    "emb": rows(SHAPES["emb"]),
    "b": every_other(SHAPES["b"]),
    "big": every_other(SHAPES["big"]),
    "d": last(SHAPES["d"]),
    "e": rows(SHAPES["e"]),
    "f": nothing(SHAPES["f"]),
}


def masked(optimizer: str | None = None, mode: str = "gather", masks: Masks = MASKS, **options: Any) -> Pair:
    pair = Pair.of(Bag(SHAPES), optimizer, mode, **options)
    set_masks(pair, masks)
    return pair


def set_masks(pair: Pair, masks: Masks) -> None:
    for name, mask in masks.items():
        pair.store.set_trainable_mask(name, mask)


def backward(pair: Pair, generator: torch.Generator, masks: Masks = MASKS, bad: float = math.nan) -> None:
    """Gradients for both: with `bad` where ours is masked, with 0 where the twin's would be."""
    pair.backward(generator)
    for name, mask in masks.items():
        pair.ours.get_parameter(name).grad[~mask] = bad
        pair.theirs.get_parameter(name).grad[~mask] = 0.0


def reference_step(pair: Pair, masks: Masks = MASKS) -> None:
    """torch's step, and back to what was where elements are masked."""
    before = {
        name: (param.detach().clone(), {k: v.clone() for k, v in pair.ref.state[param].items() if v is not None})
        for name, param in pair.theirs.named_parameters()
    }
    pair.ref.step()
    for name, mask in masks.items():
        param = pair.theirs.get_parameter(name)
        value, states = before[name]
        param.data[~mask] = value[~mask]
        for key, state in pair.ref.state[param].items():
            if isinstance(state, Tensor) and state.shape == param.shape and key != "step":
                state[~mask] = states[key][~mask] if key in states else 0.0


def run(pair: Pair, steps: int, masks: Masks = MASKS, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        pair.zero_grad()
        backward(pair, generator, masks, bad=1.0 if step % 2 else math.nan)
        pair.opt.step()
        reference_step(pair, masks)


def snapshot(pair: Pair, masks: Masks = MASKS) -> dict[tuple[str, str], Tensor]:
    """Masked elements of values and states."""
    found = {}
    for name, mask in masks.items():
        param = pair.ours.get_parameter(name)
        for key, tensor in {"value": param.detach(), **pair.opt.state[param]}.items():
            if key != "step":
                found[name, key] = tensor[~mask].clone()
    return found


def assert_kept(pair: Pair, before: dict[tuple[str, str], Tensor], masks: Masks = MASKS) -> None:
    after = snapshot(pair, masks)
    assert after.keys() == before.keys()
    for key, kept in before.items():
        assert_same_bits(after[key], kept)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer: str, mode: str) -> None:
    """With state and decay that would move them: they are masked after some steps, and trained again later."""
    pair = Pair.of(Bag(SHAPES), optimizer, mode)
    run(pair, 2, {})
    before = snapshot(pair)
    set_masks(pair, MASKS)
    run(pair, 3, seed=2)
    assert_kept(pair, before)
    pair.assert_values_close()
    pair.assert_states_close()
    for name in MASKS:
        pair.store.set_trainable_mask(name, None)
    run(pair, 2, {}, seed=3)
    pair.assert_values_close()
    pair.assert_states_close()
    pair.store.check()


@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adamw", "adamw-amsgrad", "lion-decay"])
def test_masks_from_the_first_step(optimizer: str) -> None:
    pair = masked(optimizer)
    run(pair, 3)
    pair.assert_values_close()
    pair.assert_states_close()
    assert not any(state.any() for (_, key), state in snapshot(pair).items() if key != "value")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "lion"])
def test_clipping_inside_the_step(optimizer: str, mode: str) -> None:
    pair = masked(optimizer, mode, max_norm=0.7, skip_nonfinite=True)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        pair.zero_grad()
        backward(pair, generator)
        expected = clip_grad_norm_(pair.theirs.parameters(), 0.7)
        pair.opt.step()
        reference_step(pair)
        torch.testing.assert_close(pair.opt.grad_norm, expected, rtol=NORM_TOLERANCE, atol=0.0)
    assert pair.opt.skipped.item() == 0
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0, math.inf, -math.inf, 0.0])
def test_norms_of_every_order(order: float, mode: str) -> None:
    pair = masked(mode=mode)
    backward(pair, torch.Generator().manual_seed(5))
    expected = torch.nn.utils.get_total_norm([param.grad for param in pair.theirs.parameters()], order)
    torch.testing.assert_close(pair.store.grad_norm(order), expected, rtol=1e-5, atol=0.0)
    if order > 0.0:
        for name, (value, grad) in pair.store.norms(order).items():
            param = pair.theirs.get_parameter(name)
            for found, tensor in ((value, param.detach()), (grad, param.grad)):
                # In double precision: torch's own sums of many powers are off by more than this in float32.
                exact = torch.linalg.vector_norm(tensor.double(), order).float()
                torch.testing.assert_close(found, exact, rtol=5e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_clip_grad_norm(mode: str, order: float) -> None:
    pair = masked("sgd", mode)
    backward(pair, torch.Generator().manual_seed(5))
    expected = clip_grad_norm_(pair.theirs.parameters(), 0.5, order)
    torch.testing.assert_close(pair.store.clip_grad_norm_(0.5, order), expected, rtol=1e-5, atol=0.0)
    for name, param in pair.theirs.named_parameters():
        assert_close(pair.store[name].grad, param.grad, name)
    pair.opt.step()
    reference_step(pair)
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_clip_grad_value(mode: str) -> None:
    pair = masked(mode=mode)
    backward(pair, torch.Generator().manual_seed(5))
    clip_grad_value_(pair.theirs.parameters(), 0.3)
    pair.store.clip_grad_value_(0.3)
    for name, param in pair.theirs.named_parameters():
        assert_close(pair.store[name].grad, param.grad, name)


def test_a_norm_of_nan_does_not_reach_masked_elements_of_the_stream() -> None:
    """Clipping multiplies the stream by NaN, and 0 * NaN is no zero."""
    pair = masked()
    backward(pair, torch.Generator().manual_seed(5))
    pair.ours.a.grad[0] = math.nan
    assert pair.store.clip_grad_norm_(1.0).isnan()
    for name, mask in MASKS.items():
        assert not pair.store[name].grad[~mask].any()
        assert pair.store[name].grad[mask].isnan().all()


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "lion"])
def test_micro_batches(optimizer: str) -> None:
    pair = masked(optimizer, max_norm=1.0)
    for cycle in range(3):
        generator = torch.Generator().manual_seed(cycle)
        for _ in range(3):
            backward(pair, generator)  # the twin's gradients add up in `.grad`
            pair.store.accumulate(scale=1 / 3)
        for param in pair.theirs.parameters():
            param.grad /= 3
        expected = clip_grad_norm_(pair.theirs.parameters(), 1.0)
        torch.testing.assert_close(pair.store.grad_norm(), expected, rtol=NORM_TOLERANCE, atol=0.0)
        pair.opt.step()
        reference_step(pair)
        pair.ref.zero_grad()
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_in_the_middle_of_a_cycle(mode: str) -> None:
    """What was accumulated before is no gradient any more, where it is masked."""
    pair = masked("adamw", mode, masks={})
    generator = torch.Generator().manual_seed(5)
    pair.backward(generator)
    pair.store.accumulate()
    set_masks(pair, MASKS)
    assert not any(pair.store[name].grad[~mask].any() for name, mask in MASKS.items())
    backward(pair, generator)
    pair.store.accumulate()
    expected = torch.nn.utils.get_total_norm([param.grad for param in pair.theirs.parameters()])
    torch.testing.assert_close(pair.store.grad_norm(), expected, rtol=NORM_TOLERANCE, atol=0.0)
    pair.opt.step()
    reference_step(pair)
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", CLASSES)
def test_groups(optimizer: str, mode: str) -> None:
    pair = masked(mode=mode)
    names = [["emb", "c", "e"], ["a", "b", "big", "d", "f"]]
    changes: list[dict[str, Any]] = [{"lr": 0.02, "weight_decay": 0.3}, {"lr": 0.1}]
    pair.opt = CLASSES[optimizer]([{"params": n, **c} for n, c in zip(names, changes, strict=True)], store=pair.store)
    twins = [
        {"params": [pair.theirs.get_parameter(name) for name in group], **change}
        for group, change in zip(names, changes, strict=True)
    ]
    pair.ref = TRUTH[optimizer](twins, **FLAVOR[TRUTH[optimizer]])
    run(pair, 4)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
def test_masks_that_change(mode: str) -> None:
    pair = masked("adamw", mode)
    run(pair, 2)
    changed = {**MASKS, "emb": ~MASKS["emb"], "a": torch.tensor([True, False])}
    del changed["big"]
    pair.store.set_trainable_mask("big", None)
    set_masks(pair, changed)
    before = snapshot(pair, changed)
    run(pair, 2, changed, seed=2)
    assert_kept(pair, before, changed)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
def test_growth_freezing_and_unfreezing_on_the_way(mode: str) -> None:
    pair = masked("adamw", mode)
    run(pair, 2)
    pair.store.add("later", torch.ones(100_000))
    run(pair, 1, seed=2)
    pair.store.freeze("emb")
    pair.theirs.emb.requires_grad_(False)
    without = {name: mask for name, mask in MASKS.items() if name != "emb"}
    run(pair, 2, without, seed=3)
    pair.store.unfreeze("emb")
    pair.theirs.emb.requires_grad_(True)
    run(pair, 2, seed=4)
    pair.assert_values_close()
    pair.store.check()


def test_state_dicts_go_both_ways() -> None:
    """A mask is no part of an optimizer's state: states load into torch.optim, and back into another store."""
    pair = masked("adamw")
    run(pair, 2)
    saved = copy.deepcopy(pair.opt.state_dict())
    pair.ref.load_state_dict(copy.deepcopy(saved))  # torch.optim steps the very tensors it is given
    other = masked("adamw")
    other.ours.load_state_dict(pair.ours.state_dict())
    other.theirs.load_state_dict(pair.theirs.state_dict())
    other.opt.load_state_dict(saved)
    other.ref.load_state_dict(copy.deepcopy(saved))
    for each in (pair, other):
        run(each, 2, seed=6)
        each.assert_values_close()
        each.assert_states_close()
    for name, param in pair.ours.named_parameters():
        assert_same_bits(param, other.ours.get_parameter(name))
