"""`values="stochastic"`: bfloat16 alone, moved by steps far below its last bit, and the same however it is stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv


def test_small_steps_add_up_and_tell_how_many_moved() -> None:
    """Each is a hundredth of the last bit: rounded to nearest, none of them moves anything."""
    moved = {}
    for rounds in (True, False):
        store = fv.VarStore(dtype=torch.bfloat16, values="stochastic")
        weight = store.add("weight", torch.full((200, 50), 1.5, dtype=torch.bfloat16))
        optimizer = fv.optim.SGD(store, lr=2.0**-13, stats=True)
        optimizer.stochastic_rounding = rounds
        for _ in range(100):
            weight.grad = torch.ones(200, 50, dtype=torch.bfloat16)
            optimizer.step()
        moved[rounds] = 1.5 - float(store.float32("weight").mean())
        stuck = float(optimizer.stats()["weight"]["stuck"])
        assert (9_000 < stuck < 10_000) if rounds else stuck == 10_000
    assert moved[True] == pytest.approx(100 * 2.0**-13, rel=0.05)
    assert moved[False] == 0.0


def test_no_layout_shows() -> None:
    found = []
    for before in (0, 3):
        store = fv.VarStore(dtype=torch.bfloat16, values="stochastic", seed=0)
        for i in range(before):
            store.add(f"other{i}", torch.ones(1000 + i, dtype=torch.bfloat16))
        weight = store.add("weight", torch.ones(9000, dtype=torch.bfloat16))
        optimizer = fv.optim.AdamW([weight])
        for step in range(3):
            weight.grad = torch.linspace(-1, 1 + step, 9000).bfloat16()
            optimizer.step()
        found.append(weight.detach().clone())
    assert torch.equal(*found)


def test_bytes_of_a_parameter() -> None:
    """Values and states of AdamW, beside the gradient: 4.06 with states in 8 bits, 6 in bfloat16."""
    for options, expected in (({"state_format": "root8"}, 4 + 1 / 16), ({}, 6)):
        store = fv.VarStore(dtype=torch.bfloat16, values="stochastic")
        store.add("weight", torch.zeros(128, 1024, dtype=torch.bfloat16))
        optimizer = fv.optim.AdamW(store, **options)
        store["weight"].param.grad = torch.ones(128, 1024, dtype=torch.bfloat16)
        optimizer.step()
        assert store.registry.streams.nbytes == expected * 128 * 1024


def test_its_memory_can_be_shared() -> None:
    store = fv.VarStore.from_module(nn.Linear(3, 2), dtype=torch.bfloat16, values="stochastic")
    assert store.share_memory_()["weight"].value.is_shared()
