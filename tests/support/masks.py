"""Masks of elements worth telling apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, ...]


def every_other(shape: Shape) -> Tensor:
    """Elements in turn, so that each wide access holds both kinds."""
    return (torch.arange(torch.Size(shape).numel()) % 2 == 0).view(shape)


def rows(shape: Shape) -> Tensor:
    """Some rows of an embedding: a third of them stays."""
    trains = torch.arange(shape[0] if shape else 1) % 3 != 1
    return trains.view(-1, *[1] * (len(shape) - 1)).expand(shape)


def nothing(shape: Shape) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


def last(shape: Shape) -> Tensor:
    """All but the last element, next to the padding."""
    trains = torch.ones(shape, dtype=torch.bool)
    trains.view(-1)[-1:] = False
    return trains


MASKS: dict[str, Callable[[Shape], Tensor]] = {
    "every-other": every_other,
    "rows": rows,
    "nothing": nothing,
    "last": last,
}
"""From a shape to bool [shape]; True trains."""
