"""What one launch of initialization writes: variables of one stream, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
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


# Columns of a variable's row before its numbers: kind, seed, key, whether wide, first index, base.
HEAD = 6
AXES_AT = HEAD + NUMBERS


def fill_tables(fills: Sequence[Fill], seed: int, block: int) -> tuple[Int64s, Int64s, int]:
    """What kernels read: rows of tiles and of variables, and how many axes a variable's row has room for."""
    axes = max((len(fill.axes) for fill in fills if not is_wide(fill)), default=0)
    return tile_rows(fills, block), variable_rows(fills, seed, axes), axes


def is_wide(fill: Fill) -> bool:
    """Whether elements lie in the order of their indices, on the boundaries that wide stores need."""
    return fill.row_major and fill.start % 16 == 0 and fill.first % 16 == 0


def variable_rows(fills: Sequence[Fill], seed: int, axes: int) -> Int64s:
    """[variables, columns] int64: kind, seed, key, whether wide, first index, base, numbers, axes."""
    rows = np.zeros((len(fills), AXES_AT + 2 * axes), dtype=np.int64)
    rows[:, AXES_AT::2] = 1
    rows[:, 0] = [fill.draw.kind for fill in fills]
    rows[:, 1] = np.uint64(seed).astype(np.int64)
    rows[:, 2] = np.array([fill.key for fill in fills], dtype=np.uint64).view(np.int64)
    rows[:, 3] = [is_wide(fill) for fill in fills]
    rows[:, 4] = [fill.first for fill in fills]
    rows[:, 5] = [fill.start - (fill.first if fill.row_major else 0) for fill in fills]
    draws = list({id(fill.draw): fill.draw for fill in fills}.values())
    position = {id(draw): i for i, draw in enumerate(draws)}
    numbers = np.stack([number_row(draw) for draw in draws])
    rows[:, HEAD:AXES_AT] = numbers[[position[id(fill.draw)] for fill in fills]]
    for i in np.flatnonzero(rows[:, 3] == 0).tolist():
        flat = np.array(fills[i].axes).ravel()
        rows[i, rows.shape[1] - len(flat) :] = flat
    return rows


def number_row(draw: Draw) -> Int64s:
    """[NUMBERS] int64: the bits of float64 numbers, or integers."""
    row = np.zeros(NUMBERS, dtype=np.int64 if draw.kind == DIAGONAL else np.float64)
    row[: len(draw.numbers)] = draw.numbers
    bits: Int64s = row.view(np.int64)
    return bits


def tile_rows(fills: Sequence[Fill], block: int) -> Int64s:
    """[tiles, 4] int64: start in the stream, row-major index of the first lane, elements, row of the variable."""
    firsts = np.array([fill.first for fill in fills], dtype=np.int64)
    begins = firsts // 16 * 16
    stops = firsts + np.array([fill.count for fill in fills], dtype=np.int64)
    counts = -(-(stops - begins) // block)
    variable = np.repeat(np.arange(len(fills), dtype=np.int64), counts)
    step = (np.arange(counts.sum(), dtype=np.int64) - (np.cumsum(counts) - counts)[variable]) * block
    local = begins[variable] + step
    starts = np.array([fill.start if is_wide(fill) else 0 for fill in fills], dtype=np.int64)
    length = np.minimum(stops[variable] - local, block)
    rows: Int64s = np.stack([starts[variable] + step, local, length, variable], axis=1)
    return rows


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
