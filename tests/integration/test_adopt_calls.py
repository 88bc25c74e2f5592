"""What adopting a module costs: calls of Python's for each variable, which are nearly all of its time."""

from __future__ import annotations

import torch
from torch import nn

import flatvars as fv

from .test_host_time import calls_of

A_VARIABLE = 70
"""Calls. They are 64 with torch's own, which lists parameters; they were 106, and before that 175."""


def module_of(count: int) -> nn.Module:
    return nn.ParameterList(nn.Parameter(torch.zeros(3, 4)) for _ in range(count))


def test_calls_of_each_variable() -> None:
    few, many = module_of(500), module_of(1_500)
    fv.VarStore.from_module(module_of(1))
    calls = [calls_of(lambda module=module: fv.VarStore.from_module(module)) for module in (few, many)]
    assert calls[1] - calls[0] < A_VARIABLE * 1_000
