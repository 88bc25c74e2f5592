"""A step that repeats the last one is launched again as it was; whatever differs between two steps is seen.

Each change is made to an optimizer and to a twin of which no step is ever taken for a repetition: they end with the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.kernels.plan import Plan
from flatvars.optim.changes import Change, GroupChanges
from tests.parity.pairs import MODES

SHAPES = ((5, 3), (7,), (130,), (2, 2))
STEPS = 3


class Trained:
    """A few parameters in two groups, their store and optimizer, and gradients that are the same for all twins."""

    def __init__(self, mode: str, kind: Any = fv.optim.AdamW, dtype: torch.dtype = torch.float32, **options: Any):
        generator = torch.Generator().manual_seed(0)
        self.params = nn.ParameterList([nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in SHAPES])
        self.store = fv.VarStore.from_module(self.params, grads=mode, seed=3)
        groups = [{"params": list(self.params)[:2]}, {"params": list(self.params)[2:], "weight_decay": 0.1}]
        self.optimizer = kind(groups, lr=0.01, **options)
        self.generator = torch.Generator().manual_seed(1)
        self.average: Any = None

    def step(self, count: int = STEPS, scale: float = 1.0) -> None:
        for _ in range(count):
            for param in self.params:
                grad = torch.randn(param.shape, generator=self.generator).to(param.dtype) * scale
                if param.grad is None:
                    param.grad = grad
                else:
                    param.grad.add_(grad)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def numbers(self) -> list[Tensor]:
        states = [self.optimizer.state[param] for param in self.params]
        found = [x for state in states for x in state.values() if isinstance(x, Tensor)]
        return [tensor.detach().clone() for tensor in (*self.params, *found, self.optimizer.skipped)]


@contextmanager
def never_again(optimizer: Any) -> Iterator[None]:
    """Steps of this optimizer are all made from the beginning."""
    with patch.object(optimizer._changes, "look", lambda groups: Change.ANY):
        yield


def set_lr(trained: Trained) -> None:
    trained.optimizer.param_groups[1]["lr"] = 0.5


def set_all_lr(trained: Trained) -> None:
    for group in trained.optimizer.param_groups:
        group["lr"] *= 0.5


def set_betas(trained: Trained) -> None:
    trained.optimizer.param_groups[0]["betas"] = (0.5, 0.6)


def set_decay_and_lr(trained: Trained) -> None:
    trained.optimizer.param_groups[0].update(lr=0.3, weight_decay=0.7)


def set_tensor_lr(trained: Trained) -> None:
    trained.optimizer.param_groups[0]["lr"] = rate = torch.tensor(0.2)
    trained.step()
    rate.fill_(0.9)


def set_amsgrad(trained: Trained) -> None:
    for group in trained.optimizer.param_groups:
        group["amsgrad"] = True


def maximize(trained: Trained) -> None:
    trained.optimizer.param_groups[0]["maximize"] = True


def set_max_norm(trained: Trained) -> None:
    trained.optimizer.max_norm = 0.01


def clear_max_norm(trained: Trained) -> None:
    trained.optimizer.max_norm = 0.01
    trained.step()
    trained.optimizer.max_norm = None


def skip_nonfinite(trained: Trained) -> None:
    trained.optimizer.skip_nonfinite = True
    trained.step(1, scale=float("inf"))


def upload_and_set_back(trained: Trained) -> None:
    groups = trained.optimizer.param_groups
    before = groups[0]["lr"]
    groups[0]["lr"] = 5.0
    trained.optimizer.upload_hyperparameters()
    groups[0]["lr"] = before


def other_order(trained: Trained) -> None:
    group = trained.optimizer.param_groups[0]
    group["maximize"], group["amsgrad"] = group.pop("maximize"), group.pop("amsgrad")
    group["maximize"] = True


def move_between_groups(trained: Trained) -> None:
    first, second = trained.optimizer.param_groups
    second["params"].append(first["params"].pop())


def exchange_groups(trained: Trained) -> None:
    trained.optimizer.param_groups.reverse()


def freeze(trained: Trained) -> None:
    trained.store.freeze(trained.store.trainable_variables()[1].name)


def mask(trained: Trained) -> None:
    name = trained.store.trainable_variables()[2].name
    trained.store.set_trainable_mask(name, torch.arange(130) % 2 == 0)


def load(trained: Trained) -> None:
    trained.optimizer.load_state_dict(trained.optimizer.state_dict())


def write_state(trained: Trained) -> None:
    trained.optimizer.state[trained.params[0]]["exp_avg"] = torch.ones(SHAPES[0])


def clear_state(trained: Trained) -> None:
    trained.optimizer.state.clear()


def share(trained: Trained) -> None:
    trained.store.share_memory_()


def grow(trained: Trained) -> None:
    new = nn.Parameter(torch.ones(40))
    trained.params.append(new)
    trained.store.add("new", new)
    trained.optimizer.add_param_group({"params": [new]})


def average(trained: Trained) -> None:
    trained.average = fv.optim.EMA(trained.optimizer, decay=0.5)


def one_thread(trained: Trained) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trained.step()
    torch.set_num_threads(before)


def scaled(trained: Trained) -> None:
    trained.optimizer.grad_scale = torch.tensor(8.0)
    trained.step()
    trained.optimizer.grad_scale = torch.tensor(2.0)
    trained.step()
    del trained.optimizer.grad_scale


def found_infinity(trained: Trained) -> None:
    trained.optimizer.found_inf = torch.tensor(1.0)
    trained.step()
    del trained.optimizer.found_inf


def accumulated(trained: Trained) -> None:
    for param in trained.params:
        param.grad = torch.ones_like(param)
    trained.store.accumulate()
    trained.optimizer.step()
    trained.optimizer.zero_grad()


def untouched(trained: Trained) -> None:
    trained.params[1].grad = torch.ones(SHAPES[1])
    trained.optimizer.step()
    trained.optimizer.zero_grad()


def double_gradients(trained: Trained) -> None:
    trained.store.zero_grad()
    trained.params[0].grad = torch.ones_like(trained.params[0])
    trained.optimizer.step()
    trained.optimizer.zero_grad()


def cleared_in_the_step(trained: Trained) -> None:
    for zero_grad in (True, True, False, True):
        for param in trained.params:
            if param.grad is None:
                param.grad = torch.ones_like(param)
            else:
                param.grad.add_(torch.ones_like(param))
        trained.optimizer.step(zero_grad=zero_grad)


def refused(trained: Trained) -> None:
    groups = trained.optimizer.param_groups
    before = groups[0]["betas"]
    groups[0]["betas"] = (2.0, 0.5)
    with pytest.raises(ValueError, match="beta"):
        trained.step(1)
    trained.optimizer.zero_grad()
    with pytest.raises(ValueError, match="beta"):
        trained.step(1)
    trained.optimizer.zero_grad()
    groups[0]["betas"] = before


CHANGES: list[Callable[[Trained], None]] = [
    set_lr,
    set_all_lr,
    set_betas,
    set_decay_and_lr,
    set_tensor_lr,
    set_amsgrad,
    maximize,
    set_max_norm,
    clear_max_norm,
    skip_nonfinite,
    upload_and_set_back,
    other_order,
    move_between_groups,
    exchange_groups,
    freeze,
    mask,
    load,
    write_state,
    clear_state,
    share,
    grow,
    average,
    one_thread,
    scaled,
    found_infinity,
    untouched,
    double_gradients,
    cleared_in_the_step,
    refused,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change: Callable[[Trained], None], mode: str) -> None:
    found = []
    for repeats in (True, False):
        trained = Trained(mode)
        with nullcontext() if repeats else never_again(trained.optimizer):
            trained.step()
            change(trained)
            trained.step()
        found.append(trained.numbers())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def launches_from_the_beginning(trained: Trained, run: Callable[[], None]) -> int:
    """How often launches of steps were put together while something ran."""
    with patch.object(Plan, "step_", autospec=True, side_effect=Plan.step_) as made:
        run()
    return made.call_count


RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (fv.optim.AdamW, {"max_norm": 1.0}),
    "momentum": (fv.optim.SGD, {"momentum": 0.9, "skip_nonfinite": True}),
    "lamb": (fv.optim.LAMB, {}),  # two launches
    "rounded at random": (fv.optim.AdamW, {"dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_steps_that_repeat_put_nothing_together(rule: str, mode: str) -> None:
    kind, options = RULES[rule]
    ours, twin = (Trained(mode, kind, **options) for _ in range(2))
    ours.step(2)
    assert launches_from_the_beginning(ours, ours.step) == 0

    def scheduled() -> None:
        for rate in (0.3, 0.1, 0.2):
            ours.optimizer.param_groups[0]["lr"] = rate
            ours.step(1)

    assert launches_from_the_beginning(ours, scheduled) == 0
    with never_again(twin.optimizer):
        assert launches_from_the_beginning(twin, lambda: twin.step(2 + STEPS)) == 2 + STEPS
        for rate in (0.3, 0.1, 0.2):
            twin.optimizer.param_groups[0]["lr"] = rate
            twin.step(1)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours.numbers(), twin.numbers(), strict=True))


def test_a_rate_that_is_no_number_is_refused_though_nothing_else_changed() -> None:
    trained = Trained("gather")
    trained.step()
    before = trained.numbers()
    trained.optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr"):
        trained.step(1)
    assert all(torch.equal(now, then) for now, then in zip(trained.numbers(), before, strict=True))


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_numbers_of_a_step_that_was_broken_off_are_not_used_when_they_are_set_back(name: str) -> None:
    """The first of two launches has its new numbers by then, and the second has not."""

    ours, twin = Trained("gather"), Trained("gather")
    for trained in (ours, twin):
        half = nn.Parameter(torch.ones(9, dtype=torch.float64))
        trained.params.append(half)
        trained.store.add("half", half)
        trained.optimizer.param_groups[0]["params"].append(half)
        trained.step()
        group, launches = trained.optimizer.param_groups[0], [trained.optimizer.launch_part]
        before, group[name] = group[name], 0.7
        launch = patch.object(trained.optimizer, "launch_part", lambda *given, left=launches: left.pop()(*given))
        with launch, pytest.raises(IndexError):  # at the second launch
            trained.step(1)
        group[name] = before
    ours.step()
    with never_again(twin.optimizer):
        twin.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours.numbers(), twin.numbers(), strict=True))


def test_what_changed() -> None:
    groups: list[dict[str, Any]] = [{"params": [], "lr": 0.1, "betas": (0.9, 0.99)}, {"params": [], "lr": 0.2}]
    changes = GroupChanges()
    assert changes.look(groups) is Change.ANY
    changes.note(groups)
    assert changes.look(groups) is Change.NONE
    groups[1]["lr"] = 0.3
    assert changes.look(groups) is Change.RATE
    changes.note(groups)
    assert changes.look(groups) is Change.NONE
    groups[0]["betas"] = (0.5, 0.99)
    assert changes.look(groups) is Change.ANY
    changes.note(groups)
    groups[0]["lr"] = float("inf")
    assert changes.look(groups) is Change.ANY
    changes.note([{**groups[0], "lr": 0.1}, groups[1]])
    groups[0]["lr"] = 1
    assert changes.look(groups) is Change.ANY  # of another kind
    changes.note(groups)
    groups.append({"params": []})
    assert changes.look(groups) is Change.ANY
    groups.pop()
    assert changes.look(groups) is Change.ANY  # until they are noted
    changes.note(groups)
    groups[0]["more"] = 1
    assert changes.look(groups) is Change.ANY
    groups = [{"params": [], "scale": 0.1}]  # of a rule that has no learning rate
    changes.note(groups)
    groups[0]["scale"] = 0.2
    assert changes.look(groups) is Change.ANY
    groups[0]["more"] = torch.ones(1)
    changes.note(groups)
    assert changes.look(groups) is Change.ANY  # a tensor may change in place
