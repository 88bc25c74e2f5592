"""A linear layer over a path."""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import furnish


def linear(
    path: Path,
    in_features: int,
    out_features: int,
    bias: bool = True,
    *,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear:
    """A torch.nn.Linear of the variables `bias` and `weight`, created in this order.

    Args:
        path: Where its variables are declared, with the path's param group.
        in_features, out_features, bias: torch.nn.Linear's.
        weight_init: Kaiming-uniform over the fan-in for ReLU, if not given.
        bias_init: Uniform in +-1/sqrt(in_features), if not given.
        dtype: Of the variables; the store's if not given.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> store = VarStore()
        >>> layer = linear(store.root() / "head", 4, 2)
        >>> list(store)
        ['head.bias', 'head.weight']
    """
    module = nn.Linear(in_features, out_features, bias, device="meta")
    bound = 1.0 / math.sqrt(in_features) if in_features else 0.0
    wanted = [("bias", bias_init or init.uniform(-bound, bound)), ("weight", weight_init or init.kaiming_uniform())]
    return furnish(path, module, wanted, dtype)
