"""Steps with masked elements equal torch.optim's on a twin whose masked elements are put back.

What one launch does with them, for every rule, dtype and bad gradient, is in `tests/kernels/test_masked_launches.py`;
norms and clipping in `test_masked_norms.py`; how a mask is set and lives on in `tests/integration/test_mask_life.py`,
its way into files in `tests/checkpoint/test_saved_masks.py`, and among all other calls in `tests/machine`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from tests.support.models import Bag
from tests.support.tolerances import assert_same_bits

from .masked_pairs import MASKS, SHAPES, assert_kept, backward, masked, reference_step, run, set_masks, snapshot
from .pairs import FLAVOR, MODES, NORM_TOLERANCE, OPTIMIZERS, Pair
from .test_groups import CLASSES, TRUTH


@pytest.mark.parametrize(
    ("optimizer", "mode"),
    [(name, MODES[i % len(MODES)]) for i, name in enumerate(OPTIMIZERS)],  # a rule does not know the mode
)
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
