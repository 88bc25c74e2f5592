"""Convolutions over a path."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import Wanted, furnish


def _wanted(weight_init: Initializer | None, bias_init: Initializer | None) -> Wanted:
    return [("bias", bias_init or init.zeros()), ("weight", weight_init or init.kaiming_uniform())]


def conv1d(
    path: Path,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int],
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Conv1d:
    """A torch.nn.Conv1d of the variables `bias` and `weight`, created in this order.

    Args:
        path, weight_init, dtype: As of `linear`.
        bias_init: Zeros if not given.
        in_channels, out_channels, kernel_size, options: torch.nn.Conv1d's: stride, padding, groups, bias, ...

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> conv1d(VarStore().root() / "stem", 3, 8, 5, stride=2, padding=2).weight.shape
        torch.Size([8, 3, 5])
    """
    module = nn.Conv1d(in_channels, out_channels, kernel_size, device="meta", **options)
    return furnish(path, module, _wanted(weight_init, bias_init), dtype)


def conv2d(
    path: Path,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Conv2d:
    """A torch.nn.Conv2d; see `conv1d`."""
    module = nn.Conv2d(in_channels, out_channels, kernel_size, device="meta", **options)
    return furnish(path, module, _wanted(weight_init, bias_init), dtype)


def conv3d(
    path: Path,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int, int],
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Conv3d:
    """A torch.nn.Conv3d; see `conv1d`."""
    module = nn.Conv3d(in_channels, out_channels, kernel_size, device="meta", **options)
    return furnish(path, module, _wanted(weight_init, bias_init), dtype)
