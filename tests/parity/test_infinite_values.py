"""A parameter that holds infinities, as a mask that is added to scores: without decay it trains as torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"lr": 0.1}),
        ("RMSprop", {"lr": 0.1}),
        ("NAdam", {"lr": 0.1}),  # whose groups say which decay
    ],
)
def test_a_decay_of_zero_is_none(name: str, options: dict[str, Any]) -> None:
    ours, theirs = (nn.Parameter(torch.tensor([-torch.inf, 1.0, torch.inf])) for _ in range(2))
    store = fv.VarStore()
    store.add("mask", ours)
    mine = getattr(fv.optim, name)([ours], store=store, **options)
    torchs = getattr(torch.optim, name)([theirs], **options)
    for _ in range(3):
        for param, optimizer in ((ours, mine), (theirs, torchs)):
            param.grad = torch.tensor([0.0, 0.5, 2.0])
            optimizer.step()
    assert not theirs.isnan().any()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
