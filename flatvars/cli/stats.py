"""Norms, counts and differences of tensors in files, piece by piece; integers are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.source import Source

SHARE = 1 << 22
"""Bytes that are looked at at a time."""

Number = int | float

LOW = (1 << 32) - 1


def _wide(piece: Tensor) -> Tensor:
    return piece.to(torch.complex128 if piece.is_complex() else torch.float64)


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


@dataclass(frozen=True)
class Stats:
    """Of one tensor: L2 norm of what is finite, largest magnitude, and how many elements are not finite."""

    norm: float
    largest: Number
    nan: int
    infinite: int


def stats_of(source: Source, key: str) -> Stats:
    """Reads a tensor once, in bounded pieces."""
    squares, nan, infinite = 0.0, 0, 0
    largest: Number = 0
    whole = _is_whole(source.entries[key].dtype)
    for piece in source.pieces(key):
        values = _wide(piece)
        nan += int(values.isnan().sum())
        infinite += int(values.isinf().sum())
        finite = values[values.isfinite()].abs()
        if len(finite):
            largest = max(largest, _farthest(*_halves(piece)) if whole else float(finite.max()))
            squares += float(finite.square().sum())
    return Stats(math.sqrt(squares), largest, nan, infinite)


def difference(left: Source, right: Source, key: str) -> tuple[bool, Number]:
    """Whether two tensors of one shape are equal bit for bit, and their largest difference.

    Elements that are NaN in both are equal; in one, infinitely far.
    """
    one, other = left.info(key), right.info(key)
    equal: bool = one.dtype == other.dtype
    largest: Number = 0
    limit = SHARE // max(one.dtype.itemsize, other.dtype.itemsize)
    for start in range(0, one.numel, limit):
        count = min(limit, one.numel - start)
        a, b = left.read(key, start, count), right.read(key, start, count)
        if one.dtype == other.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            continue
        equal = False
        whole = _is_whole(one.dtype) and _is_whole(other.dtype)
        largest = max(largest, _largest_whole(a, b) if whole else _largest(_wide(a), _wide(b)))
    return equal, largest


def _largest(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros((), dtype=torch.float64), (a - b).abs())
    return float(torch.where(gap.isnan(), torch.full((), math.inf, dtype=torch.float64), gap).max())


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of 64 bits as high * 2^32 + low, int64 both, so that nothing overflows; low in [0, 2^32)."""
    wide = values.view(torch.int64) if values.dtype == torch.uint64 else values.to(torch.int64)
    high = wide >> 32
    if values.dtype == torch.uint64:
        high = high & LOW
    return high, wide & LOW


def _farthest(high: Tensor, low: Tensor) -> int:
    """The largest magnitude of integers high * 2^32 + low."""
    high, low = high + (low >> 32), low & LOW  # what was borrowed
    least, most = int(high.min()), int(high.max())
    bottom = (least << 32) + int(low[high == least].min())
    top = (most << 32) + int(low[high == most].max())
    return max(abs(bottom), abs(top))


def _largest_whole(a: Tensor, b: Tensor) -> int:
    (high, low), (other_high, other_low) = _halves(a), _halves(b)
    return _farthest(high - other_high, low - other_low)
