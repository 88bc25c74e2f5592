"""A table of vectors over a path."""

from __future__ import annotations

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import furnish


def embedding(
    path: Path,
    num_embeddings: int,
    embedding_dim: int,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    weight_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Embedding:
    """A torch.nn.Embedding of the variable `weight`.

    Args:
        path: Where the variable is declared, with the path's param group.
        num_embeddings, embedding_dim, padding_idx, max_norm, norm_type: torch.nn.Embedding's.
        scale_grad_by_freq, sparse: torch.nn.Embedding's too.
        weight_init: Normal with mean 0 and standard deviation 1, if not given. The row of `padding_idx` is drawn like
            any other, as in tch; it gets no gradient.
        dtype: Of the variable; the store's if not given.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> embedding(VarStore().root() / "tokens", 11, 4)(torch.tensor([3, 5])).shape
        torch.Size([2, 4])
    """
    options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    module = nn.Embedding(num_embeddings, embedding_dim, *options, device="meta")
    return furnish(path, module, [("weight", weight_init or init.normal())], dtype)
