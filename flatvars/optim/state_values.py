"""Single states: what one is, what it begins with, and how an entry shows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..memory.streams import Stream, normal_tensors
from ..variables.variable import Variable
from .entry import StateEntry
from .keeper import Keeper


def show_state(entry: StateEntry, name: str, stream: Stream, variable: Variable) -> None:
    """Puts what a stream holds of a variable into its entry: in place, or decoded."""
    if stream.format is None:
        entry.show(name, variable.as_whole(stream.piece(variable.span)))
    else:
        with normal_tensors():
            entry.lend(name, variable.as_whole(stream.read(variable.span)))


def write_first(optimizer: Keeper, variable: Variable, name: str, stream: Stream) -> None:
    """Writes what a state of a variable begins with."""
    first = optimizer.first_value(variable, name)
    stream.write(variable.span, wide(first).expand(variable.shape))


def is_state_of(value: Any, variable: Variable) -> bool:
    """Whether a value is a state of a variable's shape."""
    return isinstance(value, Tensor) and tuple(value.shape) == tuple(variable.shape)


def is_scalar(value: Any) -> bool:
    """Whether a value is one number."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def own_values(entry: StateEntry) -> None:
    """Gives an entry that was taken out memory of its own."""
    for name in [name for name in entry if name not in entry.loose]:
        value = entry[name]
        entry.keep(name, value.detach().clone() if isinstance(value, Tensor) else value)


def identity_of(key: Any) -> Any:
    """Tensors are keys by identity, as everywhere in torch; all else by value."""
    return ("tensor", id(key)) if isinstance(key, Tensor) else key


def wide(value: Any) -> Tensor:
    """A number as a tensor, whatever the default dtype is."""
    return torch.as_tensor(value, dtype=torch.float64)
