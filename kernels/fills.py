"""What one launch of initialization writes: variables of one stream, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch

# How a value follows from its index, and the numbers (`Draw.numbers`) that each kind takes.
CONSTANT = 0  # value
UNIFORM = 1  # low, width, top
NORMAL = 2  # mean, std
TRUNCATED = 3  # left, right, width, mean, std, low, high
DIAGONAL = 4  # columns, inner, center, period: integers; 1 where (row % period) == column and inner index == center

NUMBERS = 8

# Elements of a Philox block: four words of 64 bits, two elements each.
PER_BLOCK = 8

Axes = tuple[tuple[int, int], ...]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """A distribution, or a pattern, with its numbers.

    Attributes:
        kind: CONSTANT, UNIFORM, ...
        numbers: At most `NUMBERS`; float32 values, but of DIAGONAL integers and of CONSTANT any.
    """

    kind: int
    numbers: tuple[float, ...]

    @property
    def is_random(self) -> bool:
        return self.kind in (UNIFORM, NORMAL, TRUNCATED)


@lru_cache(maxsize=4096)
def merged_axes(shape: tuple[int, ...], stride: tuple[int, ...]) -> Axes:
    """(length, stride) of the axes, slowest index first, with neighbors in memory merged."""
    merged: list[tuple[int, int]] = []
    for length, step in zip(shape, stride, strict=True):
        if length == 1:
            continue
        if merged and merged[-1][1] == length * step:
            merged[-1] = (merged[-1][0] * length, step)
        else:
            merged.append((length, step))
    return tuple(merged) or ((1, 1),)


# Compared by identity: thousands of them are keys.
@dataclass(frozen=True, eq=False)
class Fill:
    """A variable, or a stretch of one, in a stream.

    Attributes:
        start: Element of the stream where the variable's element `first` lies.
        shape, stride: Of the whole variable; dense in any order of the axes.
        draw: What to write.
        key: Second word of the generator's key; the seed is the first.
        first, count: The stretch, in row-major order: all of the variable, or a part of a row-major one.
    """

    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    draw: Draw
    key: int
    first: int
    count: int

    @property
    def axes(self) -> Axes:
        return merged_axes(self.shape, self.stride)

    @cached_property
    def row_major(self) -> bool:
        axes = self.axes
        return len(axes) == 1 and axes[0][1] == 1

    @property
    def stop(self) -> int:
        return self.first + self.count

    def positions(self, index: Int64s) -> Int64s:
        """Where elements with these row-major indices lie in the stream."""
        position = np.full_like(index, self.start - (self.first if self.row_major else 0))
        for length, stride in reversed(self.axes):
            position += index % length * stride
            index = index // length
        return position


def diagonal(draw: Draw, numel: int) -> Int64s:
    """Row-major indices of the ones of a DIAGONAL, in rising order; `numel` is that of the variable."""
    columns, inner, center, period = (int(number) for number in draw.numbers)
    row = np.arange(numel // max(columns * inner, 1), dtype=np.int64)
    column = row % period
    row, column = row[column < columns], column[column < columns]
    return (row * columns + column) * inner + center


def rounded_constant(value: float, dtype: torch.dtype) -> float:
    """A number as torch would store it, in one rounding."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


def ranking_words(seed: int, key: int, count: int) -> npt.NDArray[np.uint32]:
    """Words of a second stream of a key, which no element's value is made of: for choices such as which rows are zero.

    Its counters have 1 in their second word, where those of values have 0.
    """
    generator = np.random.Philox(key=np.array([seed, key], dtype=np.uint64), counter=np.array([0, 1, 0, 0], np.uint64))
    words: npt.NDArray[np.uint64] = generator.random_raw(-(-count // 2))
    return words.view(np.uint32)[:count]
