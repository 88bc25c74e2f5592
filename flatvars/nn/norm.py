"""Normalizations over a path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import Wanted, furnish


def _affine(weight_init: Initializer | None, bias_init: Initializer | None) -> Wanted:
    return [("weight", weight_init or init.ones()), ("bias", bias_init or init.zeros())]


def _bias(bias: bool) -> dict[str, bool]:
    """Said to torch only where it is False: its older versions have no such argument."""
    return {} if bias else {"bias": False}


def _batch_norm(weight_init: Initializer | None, bias_init: Initializer | None) -> Wanted:
    affine = _affine(weight_init or init.uniform(0.0, 1.0), bias_init)
    return [*affine, ("running_mean", init.zeros()), ("running_var", init.ones())]


def layer_norm(
    path: Path,
    normalized_shape: int | Sequence[int],
    eps: float = 1e-5,
    elementwise_affine: bool = True,
    bias: bool = True,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.LayerNorm:
    """A torch.nn.LayerNorm of the variables `weight` and `bias`, created in this order.

    Args:
        path: Where its variables are declared, with the path's param group.
        normalized_shape, eps, elementwise_affine, bias: torch.nn.LayerNorm's.
        weight_init: Ones if not given.
        bias_init: Zeros if not given.
        dtype: Of the variables; the store's if not given.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> layer_norm(VarStore().root() / "norm", 8, eps=1e-6).weight.shape
        torch.Size([8])
    """
    shape = normalized_shape if isinstance(normalized_shape, int) else list(normalized_shape)
    module = nn.LayerNorm(shape, eps, elementwise_affine, bias, device="meta")
    return furnish(path, module, _affine(weight_init, bias_init), dtype)


def group_norm(
    path: Path,
    num_groups: int,
    num_channels: int,
    eps: float = 1e-5,
    affine: bool = True,
    *,
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.GroupNorm:
    """A torch.nn.GroupNorm of the variables `weight` and `bias`, created in this order.

    Args:
        num_groups, num_channels, eps, affine, bias: torch.nn.GroupNorm's.
        path, weight_init, bias_init, dtype: As of `layer_norm`.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.
    """
    module = nn.GroupNorm(num_groups, num_channels, eps, affine, device="meta", **_bias(bias))
    return furnish(path, module, _affine(weight_init, bias_init), dtype)


def batch_norm1d(
    path: Path,
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    *,
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.BatchNorm1d:
    """A torch.nn.BatchNorm1d of the variables `weight` and `bias`, and the untrained `running_mean` and `running_var`.

    The four have one dtype, as in torch. `num_batches_tracked` is a plain integer buffer of the module and no variable:
    tch has none.

    Args:
        path, dtype: As of `layer_norm`.
        num_features, eps, momentum, affine, track_running_stats, bias: torch.nn.BatchNorm1d's.
        weight_init: Uniform in [0, 1), if not given.
        bias_init: Zeros if not given.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> store = VarStore()
        >>> norm = batch_norm1d(store.root() / "norm", 8)
        >>> len(store), len(store.trainable_variables())
        (4, 2)
    """
    options = (eps, momentum, affine, track_running_stats)
    module = nn.BatchNorm1d(num_features, *options, device="meta", **_bias(bias))
    return furnish(path, module, _batch_norm(weight_init, bias_init), dtype)


def batch_norm2d(
    path: Path,
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    *,
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.BatchNorm2d:
    """A torch.nn.BatchNorm2d, with the variables of `batch_norm1d`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, bias: torch.nn.BatchNorm2d's.
        path, weight_init, bias_init, dtype: As of `batch_norm1d`.
    """
    options = (eps, momentum, affine, track_running_stats)
    module = nn.BatchNorm2d(num_features, *options, device="meta", **_bias(bias))
    return furnish(path, module, _batch_norm(weight_init, bias_init), dtype)


def batch_norm3d(
    path: Path,
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    *,
    bias: bool = True,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.BatchNorm3d:
    """A torch.nn.BatchNorm3d, with the variables of `batch_norm1d`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, bias: torch.nn.BatchNorm3d's.
        path, weight_init, bias_init, dtype: As of `batch_norm1d`.
    """
    options = (eps, momentum, affine, track_running_stats)
    module = nn.BatchNorm3d(num_features, *options, device="meta", **_bias(bias))
    return furnish(path, module, _batch_norm(weight_init, bias_init), dtype)
