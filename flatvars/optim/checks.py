"""What optimizers refuse: hyper-parameters that make no sense, and variables that were forgotten."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GradientError


def check_complete(untouched: list[str]) -> None:
    """Raises GradientError for trained variables without a gradient."""
    if untouched:
        raise GradientError(
            f"{len(untouched)} variables have no gradient: {', '.join(map(repr, untouched[:10]))}; nothing was "
            "stepped. Use them in the loss, freeze them, or call step() without strict=True"
        )


def check_options(max_norm: float | None, state_dtype: torch.dtype | None, stats: bool | int) -> None:
    """Raises for options of an optimizer that cannot be."""
    if max_norm is not None:
        check_number("max_norm", max_norm)
        if not max_norm >= 0.0:
            raise ValueError(f"max_norm={max_norm} is not a norm; give a number >= 0, or None not to clip")
    if state_dtype is not None and not (isinstance(state_dtype, torch.dtype) and state_dtype.is_floating_point):
        raise ValueError(
            f"state_dtype={state_dtype!r} cannot hold optimizer state; give a floating dtype, such as torch.float32, "
            "or None for the variables' own"
        )
    if not isinstance(stats, Integral) or stats < 0:
        raise ValueError(f"stats={stats!r}: give True, or a whole number k for the numbers of every k-th step")


FLAGS = frozenset(
    {
        "amsgrad",
        "capturable",
        "cautious_decay",
        "centered",
        "decoupled_weight_decay",
        "differentiable",
        "foreach",
        "fused",
        "maximize",
        "nesterov",
        "no_prox",
        "train_mode",
    }
)
"""Entries of param groups that are true or not; None is not."""

LENGTHS: Mapping[str, int] = MappingProxyType({"betas": 2, "etas": 2, "step_sizes": 2})
"""Entries that are several numbers, and how many."""


def check_kinds(
    numbers: Mapping[str, Any],
    names: Iterable[str],
    lengths: Mapping[str, int],
    waits: bool,
    optional: Collection[str] = (),
) -> None:
    """Raises for an entry of a param group that is no number where it must be one, or too few or many of them.

    Args:
        names: Of the entries to look at, of those that are there.
        lengths: Of entries that are several numbers.
        waits: Whether tensors are read, for which the device is waited for.
        optional: Of entries that may be None.
    """
    for name in names:
        value = numbers.get(name)
        if name not in numbers or (value is None and name in optional):
            continue
        if name in FLAGS:
            one = isinstance(value, Tensor) and value.numel() == 1
            if not one and not isinstance(value, (Integral, np.bool_, type(None))):
                raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give True or False")
        elif name not in lengths:
            check_number(name, value, waits)
        elif isinstance(value, (tuple, list)) and len(value) == lengths[name]:
            for i, number in enumerate(value):
                check_number(f"{name}[{i}]", number, waits)
        else:
            kind = ValueError if isinstance(value, (tuple, list)) else TypeError
            raise kind(f"{name}={value!r}: give a tuple of {lengths[name]} numbers")


def holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(holds_tensor, value)))


def check_number(name: str, number: Any, waits: bool = True) -> None:
    """Raises TypeError for what is no number, and ValueError for a NaN, or a tensor that holds more than one number."""
    if isinstance(number, Tensor):
        if number.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, but it has shape {tuple(number.shape)}")
        if not waits:
            return
    elif not isinstance(number, Real):
        raise TypeError(f"{name}={number!r} is no number but a {type(number).__name__}; give a float, or a tensor []")
    if number != number:
        raise ValueError(f"Invalid {name} value: {number}; give a number")


def check_at_least(minimum: float, **numbers: Any) -> None:
    """Raises ValueError, in torch's words, for a hyper-parameter below a minimum (or NaN); waits for tensors."""
    for name, number in numbers.items():
        check_number(name, number)
        if not number >= minimum:
            raise ValueError(f"Invalid {name} value: {number}; it must be at least {minimum}")


def check_betas(betas: Iterable[float]) -> None:
    """Raises ValueError, in torch's words, for a beta outside [0, 1)."""
    for i, beta in enumerate(betas):
        check_number(f"betas[{i}]", beta)
        if not 0.0 <= float(beta) < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")


def misfit(mine: Any, theirs: Any, where: str) -> str | None:
    """Why a loaded value cannot take the place of one, in words: another kind of value. None fits everywhere.

    Args:
        where: What the value is called.
    """
    if mine is None or theirs is None or _kind(mine) is None:
        return None
    if _kind(mine) != _kind(theirs):
        return f"{where} is {str(theirs)[:40]!r}, and a {_kind(mine)} is needed"
    if isinstance(mine, Mapping):
        pairs = [(f"{where}[{key!r}]", value, theirs[key]) for key, value in mine.items() if key in theirs]
    elif isinstance(mine, (list, tuple)):
        if isinstance(mine, tuple) and len(theirs) != len(mine):
            return f"{where} has {len(theirs)} parts, and {len(mine)} are needed"
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(mine, theirs, strict=False))]
    else:
        return None
    return next((problem for name, one, other in pairs if (problem := misfit(one, other, name))), None)


def _kind(value: Any) -> str | None:
    """What plain data is; None for what is none."""
    if isinstance(value, Tensor):
        return "number" if value.numel() == 1 else "tensor"
    if isinstance(value, Real):
        return "number"
    kinds = {str: "text", Mapping: "mapping", Sequence: "sequence"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), None)
