"""Normalizations over a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import Wanted, furnish


def _affine(weight_init: Initializer | None, bias_init: Initializer | None) -> Wanted:
    return [("weight", weight_init or init.ones()), ("bias", bias_init or init.zeros())]


def _batch_norm(weight_init: Initializer | None, bias_init: Initializer | None) -> Wanted:
    affine = _affine(weight_init or init.uniform(0.0, 1.0), bias_init)
    return [*affine, ("running_mean", init.zeros()), ("running_var", init.ones())]


def layer_norm(
    path: Path,
    normalized_shape: int | Sequence[int],
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.LayerNorm:
    """A torch.nn.LayerNorm of the variables `weight` and `bias`, created in this order.

    Args:
        path: Where its variables are declared, with the path's param group.
        weight_init: Ones if not given.
        bias_init: Zeros if not given.
        dtype: Of the variables; the store's if not given.
        normalized_shape, options: torch.nn.LayerNorm's: eps, elementwise_affine, bias.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> layer_norm(VarStore().root() / "norm", 8, eps=1e-6).weight.shape
        torch.Size([8])
    """
    shape = normalized_shape if isinstance(normalized_shape, int) else list(normalized_shape)
    return furnish(path, nn.LayerNorm(shape, device="meta", **options), _affine(weight_init, bias_init), dtype)


def group_norm(
    path: Path,
    num_groups: int,
    num_channels: int,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.GroupNorm:
    """A torch.nn.GroupNorm; initializers as of `layer_norm`, the other arguments torch's."""
    module = nn.GroupNorm(num_groups, num_channels, device="meta", **options)
    return furnish(path, module, _affine(weight_init, bias_init), dtype)


def batch_norm1d(
    path: Path,
    num_features: int,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.BatchNorm1d:
    """A torch.nn.BatchNorm1d of the variables `weight` and `bias`, and the untrained `running_mean` and `running_var`.

    The four have one dtype, as in torch. `num_batches_tracked` is a plain integer buffer of the module and no variable:
    tch has none.

    Args:
        path, dtype: As of `layer_norm`.
        weight_init: Uniform in [0, 1), if not given.
        bias_init: Zeros if not given.
        num_features, options: torch.nn.BatchNorm1d's: eps, momentum, affine, track_running_stats.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> store = VarStore()
        >>> norm = batch_norm1d(store.root() / "norm", 8)
        >>> len(store), len(store.trainable_variables())
        (4, 2)
    """
    module = nn.BatchNorm1d(num_features, device="meta", **options)
    return furnish(path, module, _batch_norm(weight_init, bias_init), dtype)


def batch_norm2d(
    path: Path,
    num_features: int,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.BatchNorm2d:
    """A torch.nn.BatchNorm2d; see `batch_norm1d`."""
    module = nn.BatchNorm2d(num_features, device="meta", **options)
    return furnish(path, module, _batch_norm(weight_init, bias_init), dtype)


def batch_norm3d(
    path: Path,
    num_features: int,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.BatchNorm3d:
    """A torch.nn.BatchNorm3d; see `batch_norm1d`."""
    module = nn.BatchNorm3d(num_features, device="meta", **options)
    return furnish(path, module, _batch_norm(weight_init, bias_init), dtype)
