"""Recurrent layers over a path."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from .. import init
from ..init import Initializer
from ..modules.path import Path
from .build import furnish

Recurrent = TypeVar("Recurrent", bound=nn.RNNBase)


def lstm(
    path: Path,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = True,
    dropout: float = 0.0,
    bidirectional: bool = False,
    proj_size: int = 0,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.LSTM:
    """A torch.nn.LSTM; its variables have torch's names: `weight_ih_l0`, ..., `bias_hh_l1_reverse`.

    Args:
        path: Where its variables are declared, with the path's param group; in each layer and direction the weights
            before the biases.
        weight_init: Kaiming-uniform over the fan-in for ReLU, if not given.
        bias_init: Zeros if not given.
        dtype: Of the variables; the store's if not given.
        batch_first: Inputs are [batch, time, features], as in tch; torch's default is the other.
        input_size, hidden_size, num_layers, bias, dropout, bidirectional, proj_size: torch.nn.LSTM's.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.

    Example:
        >>> lstm(VarStore().root() / "rnn", 4, 8)(torch.zeros(2, 5, 4))[0].shape
        torch.Size([2, 5, 8])
    """
    module = nn.LSTM(
        input_size,
        hidden_size,
        num_layers,
        bias,
        batch_first,
        dropout,
        bidirectional,
        proj_size,
        device="meta",
    )
    return _furnish(path, module, weight_init, bias_init, dtype)


def gru(
    path: Path,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = True,
    dropout: float = 0.0,
    bidirectional: bool = False,
    weight_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: torch.dtype | None = None,
) -> nn.GRU:
    """A torch.nn.GRU, with the variables of `lstm`.

    Args:
        input_size, hidden_size, num_layers, bias, dropout, bidirectional: torch.nn.GRU's.
        path, batch_first, weight_init, bias_init, dtype: As of `lstm`.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.
    """
    shape = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
    module = nn.GRU(*shape, device="meta")
    return _furnish(path, module, weight_init, bias_init, dtype)


def _furnish(
    path: Path,
    module: Recurrent,
    weight_init: Initializer | None,
    bias_init: Initializer | None,
    dtype: torch.dtype | None,
) -> Recurrent:
    weight, bias = weight_init or init.kaiming_uniform(), bias_init or init.zeros()
    names = module._flat_weights_names
    return furnish(path, module, [(name, bias if name.startswith("bias") else weight) for name in names], dtype)
