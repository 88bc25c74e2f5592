"""Learning-rate schedulers of torch: they write param groups, and the next step reads them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests.support.models import Bag

from .pairs import FLAVOR, OPTIMIZERS, Pair

SHAPES = {"a": (2,), "b": (3, 3), "c": (), "d": (66_000,)}
STEPS = 12

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda opt: lr_scheduler.StepLR(opt, 3, gamma=0.5),
    "multi-step": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 7], gamma=0.1),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, STEPS),
    "restarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 4),
    "one-cycle": lambda opt: lr_scheduler.OneCycleLR(opt, 0.3, total_steps=STEPS + 1),
    "cyclic": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.2, step_size_up=3, cycle_momentum=True),
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (step + 1)),
    "warm-up": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.8)], [4]
    ),
}


def groups_of(pair: Pair, optimizer: str) -> None:
    """Two param groups each: `a` and `b` with twice the learning rate."""
    our_class, their_class, arguments = OPTIMIZERS[optimizer]
    for attribute, cls, module, extra in (
        ("opt", our_class, pair.ours, {}),
        ("ref", their_class, pair.theirs, FLAVOR[their_class]),
    ):
        groups = [{"params": [module.a, module.b], "lr": 2 * arguments["lr"]}, {"params": [module.c, module.d]}]
        setattr(pair, attribute, cls(groups, **arguments, **extra))


def hyper(optimizer: Any) -> list[list[Any]]:
    """Everything in the groups that a scheduler may write."""
    return [[group.get(key) for key in ("lr", "initial_lr", "betas", "momentum")] for group in optimizer.param_groups]


def run(pair: Pair, schedulers: list[Any], steps: int, seed: int = 1) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(steps):
        pair.zero_grad()
        pair.backward(generator)
        pair.step()
        for scheduler in schedulers:
            scheduler.step()
        assert hyper(pair.opt) == hyper(pair.ref)
        seen.append(hyper(pair.opt))
    return seen


@pytest.mark.row("P-O-01")
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_schedules_follow_torch(optimizer: str, make: Callable[[Any], Any]) -> None:
    pair = Pair.of(Bag(SHAPES))
    groups_of(pair, optimizer)
    seen = run(pair, [make(pair.opt), make(pair.ref)], STEPS)
    assert any(numbers != seen[0] for numbers in seen)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.row("P-O-01")
def test_one_cycle_moves_the_first_beta() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    seen = run(pair, [SCHEDULERS["one-cycle"](opt) for opt in (pair.opt, pair.ref)], STEPS)
    first_betas = {numbers[0][2][0] for numbers in seen}
    assert len(first_betas) > STEPS // 2
    pair.assert_values_close()


@pytest.mark.row("P-O-01")
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_reduce_on_plateau(optimizer: str) -> None:
    pair = Pair.of(Bag(SHAPES), optimizer)
    schedulers = [lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.3) for opt in (pair.opt, pair.ref)]
    for loss in (1.0, 0.5, 0.6, 0.7, 0.8, 0.2, 0.3, 0.4, 0.5):
        pair.run(1, seed=int(10 * loss))
        for scheduler in schedulers:
            scheduler.step(loss)
    assert hyper(pair.opt) == hyper(pair.ref)
    assert pair.opt.param_groups[0]["lr"] < 0.5 * OPTIMIZERS[optimizer][2]["lr"]
    pair.assert_values_close()


def reloaded(item: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(item, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def test_a_schedule_goes_on_after_loading() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    schedulers = [SCHEDULERS["cosine"](opt) for opt in (pair.opt, pair.ref)]
    run(pair, schedulers, 5)
    saved, schedule = reloaded(pair.opt.state_dict()), reloaded(schedulers[0].state_dict())
    pair.opt = OPTIMIZERS["adamw"][0](pair.store, lr=1.0)
    fresh = SCHEDULERS["cosine"](pair.opt)
    pair.opt.load_state_dict(saved)
    fresh.load_state_dict(schedule)
    run(pair, [fresh, schedulers[1]], 5, seed=2)
    pair.assert_values_close()


def test_a_scheduler_before_the_first_step_is_warned_about_as_by_torch() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    scheduler = SCHEDULERS["step"](pair.opt)
    pair.run(1)
    scheduler.step()
    late = Pair.of(Bag(SHAPES), "adamw")
    scheduler = SCHEDULERS["step"](late.opt)
    with pytest.warns(UserWarning, match=r"lr_scheduler\.step\(\)` before `optimizer\.step\(\)"):
        scheduler.step()


def test_a_schedule_reaches_variables_that_were_frozen_meanwhile() -> None:
    pair = Pair.of(Bag(SHAPES), "adamw")
    schedulers = [SCHEDULERS["cosine"](opt) for opt in (pair.opt, pair.ref)]
    for on in (False, True):
        pair.zero_grad()
        (pair.store.unfreeze if on else pair.store.freeze)(["b", "d"])
        for name in ("b", "d"):
            pair.theirs.get_parameter(name).requires_grad_(on)
        run(pair, schedulers, 4)
    pair.assert_values_close()
    pair.assert_states_close()
