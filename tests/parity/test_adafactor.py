"""Adafactor beside torch.optim.Adafactor, which looks at one variable at a time; and what only a store has."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.launches import count_launches
from tests.support.models import Bag, Orders

SHAPES = {
    "first": (6, 5),
    "bias": (5,),
    "second": (6, 5),
    "kernel": (2, 3, 4, 3),
    "third": (6, 5),
    "scalar": (),
    "other": (5,),
    "thin": (1, 7),
}
OPTIONS = {"lr": 0.05, "weight_decay": 0.1}


def twins(options: dict[str, Any] | None = None, grads: str = "gather", **ours: Any) -> tuple[Any, Any, Any, Any]:
    """A module in a store and its optimizer, and torch's of the same."""
    mine, options = Bag(SHAPES), OPTIONS if options is None else options
    theirs = copy.deepcopy(mine)
    optimizer = fv.optim.Adafactor(fv.VarStore.from_module(mine, grads=grads), **options, **ours)
    return mine, optimizer, theirs, torch.optim.Adafactor(theirs.parameters(), **options)


def give(step: int, *modules: nn.Module, left_out: Collection[str] = (), scale: float = 1.0) -> None:
    made = torch.Generator().manual_seed(step)
    twins_of = [dict(module.named_parameters()) for module in modules]
    for name in twins_of[0]:
        grad = torch.randn(twins_of[0][name].shape, generator=made) * scale
        for params in twins_of:
            param = params[name]
            if name in left_out:
                param.grad = None
            elif param.grad is not None:  # a view: it is written
                param.grad.copy_(grad)
            else:
                param.grad = grad.clone()


def assert_same(mine: nn.Module, theirs: nn.Module) -> None:
    for name, param in theirs.named_parameters():
        torch.testing.assert_close(mine.get_parameter(name), param, rtol=5e-6, atol=1e-6)


def kept(optimizer: Any) -> list[dict[str, torch.Tensor]]:
    """Copies of all state, in the order of the parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [{name: x.clone() for name, x in dict(optimizer.state[param]).items()} for param in params]


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize(
    "options",
    [OPTIONS, {"eps": (1e-2, 0.5), "d": 1.5, "beta2_decay": -0.5, "maximize": True}],
    ids=["decay", "all"],
)
def test_steps(options: dict[str, Any], grads: str) -> None:
    """With variables that get a gradient later than those beside them in memory."""
    mine, optimizer, theirs, reference = twins(options, grads)
    for step in range(4):
        left = {0: ("second", "bias"), 2: ("first",)}.get(step, ())
        optimizer.zero_grad()
        reference.zero_grad()
        give(step, mine, theirs, left_out=left if grads == "gather" else ())
        optimizer.step()
        reference.step()
    assert_same(mine, theirs)


def test_views_that_nobody_wrote_are_left_alone() -> None:
    mine, optimizer, theirs, reference = twins(grads="views")
    for step in range(3):
        optimizer.zero_grad()
        reference.zero_grad()
        for name, param in theirs.named_parameters():
            if name != "second" or step == 2:
                param.grad = torch.full_like(param, step + 1.0)
                mine.get_parameter(name).grad.add_(param.grad)
        optimizer.step()
        reference.step()
    assert_same(mine, theirs)


def test_memory_orders() -> None:
    mine = Orders()
    theirs = copy.deepcopy(mine)
    optimizer = fv.optim.Adafactor(fv.VarStore.from_module(mine), **OPTIONS)
    reference = torch.optim.Adafactor(theirs.parameters(), **OPTIONS)
    for step in range(2):
        give(step, mine, theirs)
        optimizer.step()
        reference.step()
    assert_same(mine, theirs)


def test_groups_have_numbers_of_their_own() -> None:
    mine = Bag(SHAPES)
    theirs = copy.deepcopy(mine)
    runs = []
    for module, make in ((mine, fv.optim.Adafactor), (theirs, torch.optim.Adafactor)):
        params = dict(module.named_parameters())
        rest = [param for name, param in params.items() if name != "second"]
        groups = [{"params": rest}, {"params": [params["second"]], "lr": 0.5, "beta2_decay": -0.3, "d": 2.0}]
        runs.append(make(groups, lr=0.05))
    for step in range(3):
        give(step, mine, theirs)
        for optimizer in runs:
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5
    assert_same(mine, theirs)


def test_clipping_is_that_of_the_norm_of_all() -> None:
    mine, optimizer, theirs, reference = twins(max_norm=0.5)
    for step in range(3):
        give(step, mine, theirs)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-5, atol=0.0)
    assert_same(mine, theirs)


def test_state_dicts_go_both_ways() -> None:
    mine, optimizer, theirs, reference = twins()
    for step in range(2):
        give(step, mine, theirs)
        optimizer.step()
        reference.step()
    ours, other = copy.deepcopy((optimizer.state_dict(), reference.state_dict()))
    assert {k: set(v) for k, v in ours["state"].items()} == {k: set(v) for k, v in other["state"].items()}
    optimizer.load_state_dict(other)
    reference.load_state_dict(ours)
    for step in range(2, 4):
        give(step, mine, theirs)
        optimizer.step()
        reference.step()
    assert_same(mine, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(row_var=torch.zeros(3, 1)), "row_var.*shape"),
        (lambda state: state.pop("col_var"), "no 'col_var'"),
        (lambda state: state.update(exp_avg=torch.zeros(6, 5)), "a state of Adam"),
    ],
    ids=["shape", "missing", "adam"],
)
def test_a_state_that_cannot_be_is_refused(change: Any, message: str) -> None:
    mine, optimizer, *_ = twins()
    give(0, mine)
    optimizer.step()
    before, saved = kept(optimizer), copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, kept(optimizer), strict=True) for name in a)


def test_state_is_written_and_deleted_as_torchs() -> None:
    mine, optimizer, theirs, reference = twins()
    for step in range(3):
        give(step, mine, theirs)
        optimizer.step()
        reference.step()
        for module, one in ((mine, optimizer), (theirs, reference)):
            if step == 0:
                one.state[module.get_parameter("second")]["row_var"].mul_(4.0)
                one.state[module.get_parameter("bias")]["variance"] = torch.full((5,), 0.25)
            else:
                del one.state[module.get_parameter("third")]
    assert_same(mine, theirs)
    optimizer.state[mine.get_parameter("first")]["col_var"] = torch.zeros(5)
    give(3, mine)
    before = optimizer.store.values.clone()
    with pytest.raises(ValueError, match="'col_var' of variable 'first' has shape"):
        optimizer.step()
    assert torch.equal(optimizer.store.values, before)


@pytest.mark.parametrize("way", ["file", "deepcopy"])
def test_a_run_is_gone_on_with(way: str, tmp_path: Path) -> None:
    mine, optimizer, *_ = twins()
    for step in range(2):
        give(step, mine)
        optimizer.step()
    if way == "file":
        optimizer.store.save(tmp_path / "run.safetensors", optimizer)
        again, other, *_ = twins()
        other.store.load(tmp_path / "run.safetensors", other)
    else:
        again, _, other = copy.deepcopy((mine, optimizer.store, optimizer))
    for module, one in ((mine, optimizer), (again, other)):
        give(2, module)
        one.step()
    for name, param in mine.named_parameters():
        assert torch.equal(param, again.get_parameter(name))


def test_a_skipped_step_moves_nothing() -> None:
    mine, optimizer, *_ = twins(skip_nonfinite=True)
    give(0, mine)
    optimizer.step()
    before, values = kept(optimizer), optimizer.store.values.clone()
    give(1, mine, scale=math.inf)
    optimizer.step()
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.grad_scale = torch.tensor(8.0)
    give(2, mine)
    optimizer.step()
    assert optimizer.skipped.item() == 2
    assert torch.equal(optimizer.store.values, values)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, kept(optimizer), strict=True) for name in a)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert not torch.equal(optimizer.store.values, values)


def test_masked_elements_stay() -> None:
    """They count as gradients of 0 in means of rows and columns, and not at all in root mean squares."""
    mine, optimizer, *_ = twins()
    mask = torch.ones(6, 1, dtype=torch.bool)
    mask[2] = False
    optimizer.store.set_trainable_mask("second", mask)
    first = mine.get_parameter("second").detach().clone()
    for step in range(2):
        give(step, mine)
        mine.get_parameter("second").grad[2] = math.nan
        optimizer.step()
    now = mine.get_parameter("second").detach()
    assert torch.equal(now[2], first[2])
    assert bool((now != first)[[0, 1, 3, 4, 5]].all())
    assert bool(now.isfinite().all())
    assert optimizer.state[mine.get_parameter("second")]["row_var"][2] == 0.0


def test_an_average_and_numbers_come_with_it() -> None:
    mine, optimizer, *_ = twins(stats=True)
    average = fv.EMA(optimizer, decay=0.5)
    first = mine.get_parameter("first").detach().clone()
    for step in range(2):
        give(step, mine)
        optimizer.step()
        before = mine.get_parameter("first").grad.norm()
    torch.testing.assert_close(optimizer.stats()["first"]["grad_norm"].float(), before)
    with average.swapped():
        assert not torch.equal(mine.get_parameter("first"), first)


@pytest.mark.parametrize("count", [2, 40])
def test_matrices_of_one_shape_are_one_batch(count: int) -> None:
    """23 operators for each shape, beside the launches of a gather, of sums and of a step."""
    mine = Bag({f"m{i}": (4, 3) for i in range(count)})
    optimizer = fv.optim.Adafactor(fv.VarStore.from_module(mine))
    give(0, mine)
    optimizer.step()
    with count_launches() as launches:
        optimizer.step()
    assert len(launches.operators) == 23
    assert not {"cat", "stack", "clone"}.intersection(launches.operators)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"beta2_decay": 0.1}, {"eps": (None, -1.0)}, {"eps": 1e-3}, {"d": 0.5}, {"weight_decay": -1}],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fv.optim.Adafactor([nn.Parameter(torch.ones(2, 2))], **wrong)


def test_means_over_nothing_are_zero() -> None:
    """Of matrices without elements, for which torch.optim.Adafactor divides by zero."""
    mine = Bag({"rows": (0, 3), "columns": (3, 0), "both": (2, 3)})
    optimizer = fv.optim.Adafactor(fv.VarStore.from_module(mine), **OPTIONS)
    for step in range(2):
        give(step, mine)
        optimizer.step()
    states = kept(optimizer)
    assert [tuple(states[0]["col_var"].shape), tuple(states[1]["row_var"].shape)] == [(1, 3), (3, 1)]
    assert all(not state[name].any() for state, name in zip(states, ("col_var", "row_var"), strict=False))
    assert states[2]["row_var"].all()
