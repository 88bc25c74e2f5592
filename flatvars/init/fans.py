"""Fans and gains: what the width of a layer and its nonlinearity say about the scale of its weights."""

from __future__ import annotations

import math
from typing import Literal

import torch

from ..errors import InitError

Nonlinearity = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
]
"""What torch.nn.init.calculate_gain knows."""


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight [out, in, *kernel].

    A vector has fan_in 1 and its length as fan_out, a scalar 1 and 1 (the rule of tch-rs), where torch.nn.init refuses
    both: a rule for all parameters of a model then needs no exceptions.

    Example:
        >>> fans((8, 4, 3, 3)), fans((5,))
        ((36, 72), (1, 5))
    """
    field = math.prod(shape[2:])
    fan_in = shape[1] * field if len(shape) > 1 else 1
    fan_out = shape[0] * field if shape else 1
    return fan_in, fan_out


def calculate_gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    """torch.nn.init.calculate_gain: sqrt(2) for "relu", 5/3 for "tanh", 3/4 for "selu", 1 for "linear", ...

    Args:
        nonlinearity: As in torch.nn.functional.
        param: Negative slope of "leaky_relu"; 0.01 if not given.

    Raises:
        InitError: torch knows no such nonlinearity.
    """
    try:
        gain = torch.nn.init.calculate_gain(nonlinearity, param)
    except ValueError as error:
        raise InitError(f"{error}; pass gain= to say the factor itself") from None
    return float(gain)
