"""Entries of `optimizer.state` are dicts like any other: each way to edit one has the effect it has in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .pairs import MODES, Pair

Entry = dict[str, Any]


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 40))


def assign(entry: Entry, name: str, like: Tensor) -> None:
    entry[name] = torch.full_like(like, 0.25)


def update(entry: Entry, name: str, like: Tensor) -> None:
    entry.update({name: torch.full_like(like, 0.5)})


def merge(entry: Entry, name: str, like: Tensor) -> None:
    entry |= {name: torch.full_like(like, 0.5)}


def in_place(entry: Entry, name: str, like: Tensor) -> None:
    entry[name].add_(1.0)


def through_data(entry: Entry, name: str, like: Tensor) -> None:
    entry[name].data.copy_(torch.full_like(like, 0.5))


def a_row(entry: Entry, name: str, like: Tensor) -> None:
    entry[name][0] = 3.0


def of_another_dtype(entry: Entry, name: str, like: Tensor) -> None:
    entry[name] = torch.full_like(like, 0.25, dtype=torch.float64).float()


def taken_out_and_put_back(entry: Entry, name: str, like: Tensor) -> None:
    entry[name] = entry.pop(name)


def all_taken_out_and_put_back(entry: Entry, name: str, like: Tensor) -> None:
    kept = dict(entry)
    entry.clear()
    entry.update(kept)


def popped_item(entry: Entry, name: str, like: Tensor) -> None:
    key, value = entry.popitem()
    entry[key] = value


def set_default(entry: Entry, name: str, like: Tensor) -> None:
    entry.setdefault(name, torch.full_like(like, 9.0))
    entry.setdefault("mine", torch.full_like(like, 9.0))


def with_what_it_is(entry: Entry, name: str, like: Tensor) -> None:
    entry[name] = entry[name]


def one_more(entry: Entry, name: str, like: Tensor) -> None:
    entry["mine"] = 3


EDITS: list[Callable[[Entry, str, Tensor], None]] = [
    assign,
    update,
    merge,
    in_place,
    through_data,
    a_row,
    of_another_dtype,
    taken_out_and_put_back,
    all_taken_out_and_put_back,
    popped_item,
    set_default,
    with_what_it_is,
    one_more,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd-momentum", "rmsprop"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_entry_is_stepped_on(edit: Callable[..., None], optimizer: str, mode: str) -> None:
    pair = Pair.of(layers(), optimizer, mode)
    pair.run(2)
    name = {"adamw": "exp_avg", "sgd-momentum": "momentum_buffer", "rmsprop": "square_avg"}[optimizer]
    for opt, module in ((pair.opt, pair.ours), (pair.ref, pair.theirs)):
        edit(opt.state[module[0].weight], name, module[0].weight.detach())
    pair.run(2, seed=2)
    pair.assert_values_close()
    mine, theirs = (dict(opt.state[m[0].weight]) for opt, m in ((pair.opt, pair.ours), (pair.ref, pair.theirs)))
    assert set(mine) == set(theirs)
    for key, value in theirs.items():
        torch.testing.assert_close(mine[key], value, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", ["two", None, torch.ones(2)], ids=repr)
def test_a_step_count_that_is_none(wrong: Any) -> None:
    """The entry is as it was."""
    pair = Pair.of(layers(), "adamw")
    pair.run(2)
    entry = pair.opt.state[pair.ours[0].weight]
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        entry["step"] = wrong
    assert entry["step"] == 2
    pair.run(2, seed=2)
    pair.assert_values_close()
