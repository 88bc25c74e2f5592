"""A table of vectors over a path."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..path import Path
from .build import furnish


def embedding(
    path: Path,
    num_embeddings: int,
    embedding_dim: int,
    *,
    weight_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Embedding:
    """A torch.nn.Embedding of the variable `weight`.

    Args:
        path: Where the variable is declared, with the path's param group.
        weight_init: Normal with mean 0 and standard deviation 1, if not given. The row of `padding_idx` is drawn like
            any other, as in tch; it gets no gradient.
        dtype: Of the variable; the store's if not given.
        num_embeddings, embedding_dim, options: torch.nn.Embedding's: padding_idx, max_norm, sparse, ...

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> embedding(VarStore().root() / "tokens", 11, 4)(torch.tensor([3, 5])).shape
        torch.Size([2, 4])
    """
    module = nn.Embedding(num_embeddings, embedding_dim, device="meta", **options)
    return furnish(path, module, [("weight", weight_init or init.normal())], dtype)
