"""A masked store and its twin of torch.optim, whose masked elements are put back after every step, value and state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.support.masks import every_other, last, nothing, rows
from tests.support.models import Bag
from tests.support.tolerances import assert_same_bits

from .pairs import Pair

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
            if tensor.shape == param.shape:  # not the scalars of a variable
                found[name, key] = tensor[~mask].clone()
    return found


def assert_kept(pair: Pair, before: dict[tuple[str, str], Tensor], masks: Masks = MASKS) -> None:
    after = snapshot(pair, masks)
    assert after.keys() == before.keys()
    for key, kept in before.items():
        assert_same_bits(after[key], kept)
