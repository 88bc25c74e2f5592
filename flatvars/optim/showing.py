"""How an optimizer shows itself: what it steps, by which numbers. Nothing is carved, and no device is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..variables.registry import Registry
from .homes import given_in

NOTHING = frozenset({"foreach", "fused", "capturable", "differentiable", "params", "param_names", "initial_lr"})
"""Entries of a param group that say nothing of a step here."""


def show(optimizer: torch.optim.Optimizer, registry: Registry, options: Mapping[str, Any]) -> str:
    """The lines of `repr(optimizer)`.

    Args:
        options: Arguments that hold for all groups; those that are None or False are left out.
    """
    lines = [f"store: {len(registry.variables)} variables on {registry.device}"]
    given = [f"{name}={value}" for name, value in options.items() if value is not None and value is not False]
    if given:
        lines.append(", ".join(given))
    lines += [f"group {number}: {_group(group)}" for number, group in enumerate(optimizer.param_groups)]
    return "\n".join([f"{type(optimizer).__name__}(", *(f"  {line}" for line in lines), ")"])


def _group(group: Mapping[str, Any]) -> str:
    params = [one.tensor for one in given_in(group)]
    numbers = [f"{name}={_number(value)}" for name, value in group.items() if name not in NOTHING and _says(value)]
    count = f"{len(params)} parameters, {sum(param.numel() for param in params):,} elements"
    return "; ".join([count, ", ".join(numbers)])


def _says(value: Any) -> bool:
    return value is not None and value is not False


def _number(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if value.device.type != "cpu" or value.numel() != 1:  # reading it would wait for the device
        return f"tensor on {value.device}"
    return f"{float(value):g}"
