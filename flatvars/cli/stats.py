"""Norms, counts and differences of tensors in files, piece by piece."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.source import Source


def _wide(piece: Tensor) -> Tensor:
    return piece.to(torch.complex128 if piece.is_complex() else torch.float64)


@dataclass(frozen=True)
class Stats:
    """Of one tensor: L2 norm of what is finite, largest magnitude, and how many elements are not finite."""

    norm: float
    largest: float
    nan: int
    infinite: int


def stats_of(source: Source, key: str) -> Stats:
    """Reads a tensor once, in bounded pieces."""
    squares, largest, nan, infinite = 0.0, 0.0, 0, 0
    for piece in source.pieces(key):
        values = _wide(piece)
        nan += int(values.isnan().sum())
        infinite += int(values.isinf().sum())
        finite = values[values.isfinite()].abs()
        if len(finite):
            largest = max(largest, float(finite.max()))
            squares += float(finite.square().sum())
    return Stats(math.sqrt(squares), largest, nan, infinite)


def difference(left: Source, right: Source, key: str, other: str) -> tuple[bool, float]:
    """Whether two tensors of one shape are equal bit for bit, and their largest difference.

    Elements that are NaN in both are equal; in one, infinitely far.
    """
    same_dtype = left.entries[key].dtype == right.entries[other].dtype
    equal, largest = same_dtype, 0.0
    size = max(left.entries[key].dtype.itemsize, right.entries[other].dtype.itemsize)
    numel = left.entries[key].numel
    limit = (1 << 22) // size
    for start in range(0, numel, limit):
        count = min(limit, numel - start)
        a, b = left.read(key, start, count), right.read(other, start, count)
        if same_dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            continue
        equal = False
        largest = max(largest, _largest(_wide(a), _wide(b)))
    return equal, largest


def _largest(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros((), dtype=torch.float64), (a - b).abs())
    return float(torch.where(gap.isnan(), torch.full((), math.inf, dtype=torch.float64), gap).max())
