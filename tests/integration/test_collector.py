"""Adopting many tensors starts Python's collector of cycles at most once, and leaves it as it was."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import flatvars as fv


def test_adoption_does_not_collect_on_the_way() -> None:
    module = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(2_000))
    turns: list[str] = []
    note = lambda phase, _: turns.append(phase)  # noqa: E731 - the collector calls it
    gc.collect()  # who counts to its next turn begins anew, and is not there before adoption is
    gc.callbacks.append(note)
    try:
        fv.VarStore.from_module(module)
    finally:
        gc.callbacks.remove(note)
    assert turns.count("start") <= 1


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_left_as_it_was(on: bool) -> None:
    found = []
    try:
        if not on:
            gc.disable()
        fv.VarStore.from_module(nn.Linear(2, 2))
        found.append(gc.isenabled())
        with pytest.raises(fv.SpecError):
            fv.VarStore.from_module(nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.complex64))]))
        found.append(gc.isenabled())
    finally:
        gc.enable()
    assert found == [on, on]
