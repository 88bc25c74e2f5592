"""Convolutions over a path."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import Wanted, furnish

Padding = Literal["valid", "same"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def _wanted(weight_init: Initializer | None, bias_init: Initializer | None) -> Wanted:
    return [("bias", bias_init or init.zeros()), ("weight", weight_init or init.kaiming_uniform())]


def conv1d(
    path: Path,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int],
    stride: int | tuple[int] = 1,
    padding: Padding | int | tuple[int] = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: PaddingMode = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv1d:
    """A torch.nn.Conv1d of the variables `bias` and `weight`, created in this order.

    Args:
        path, weight_init, dtype: As of `linear`.
        bias_init: Zeros if not given.
        in_channels, out_channels, kernel_size, stride, padding, dilation: torch.nn.Conv1d's.
        groups, bias, padding_mode: torch.nn.Conv1d's too.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> conv1d(VarStore().root() / "stem", 3, 8, 5, stride=2, padding=2).weight.shape
        torch.Size([8, 3, 5])
    """
    where = (stride, padding, dilation, groups, bias, padding_mode)
    module = nn.Conv1d(in_channels, out_channels, kernel_size, *where, device="meta")
    return furnish(path, module, _wanted(weight_init, bias_init), dtype)


def conv2d(
    path: Path,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: Padding | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: PaddingMode = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv2d:
    """A torch.nn.Conv2d of the variables `bias` and `weight`, created in this order.

    Args:
        path, weight_init, bias_init, dtype: As of `conv1d`.
        in_channels, out_channels, kernel_size, stride, padding, dilation: torch.nn.Conv2d's.
        groups, bias, padding_mode: torch.nn.Conv2d's too.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.
    """
    where = (stride, padding, dilation, groups, bias, padding_mode)
    module = nn.Conv2d(in_channels, out_channels, kernel_size, *where, device="meta")
    return furnish(path, module, _wanted(weight_init, bias_init), dtype)


def conv3d(
    path: Path,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int, int],
    stride: int | tuple[int, int, int] = 1,
    padding: Padding | int | tuple[int, int, int] = 0,
    dilation: int | tuple[int, int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: PaddingMode = "zeros",
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv3d:
    """A torch.nn.Conv3d of the variables `bias` and `weight`, created in this order.

    Args:
        path, weight_init, bias_init, dtype: As of `conv1d`.
        in_channels, out_channels, kernel_size, stride, padding, dilation: torch.nn.Conv3d's.
        groups, bias, padding_mode: torch.nn.Conv3d's too.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.
    """
    where = (stride, padding, dilation, groups, bias, padding_mode)
    module = nn.Conv3d(in_channels, out_channels, kernel_size, *where, device="meta")
    return furnish(path, module, _wanted(weight_init, bias_init), dtype)
