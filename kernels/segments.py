"""The variables of one launch as plain integers: where each lies, in which memory order, and cut into tiles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

# Elements of a unit, counted from the start of a variable. Norms are sums over units: each in the precision of the
# arithmetic, all of them in float64, so that a norm depends on no cut into tiles, programs, threads or ranks. Every
# block is a multiple of it.
UNIT = 128


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Segments:
    """Variables of one region, in the order of their offsets.

    Attributes:
        names: For error messages.
        starts: Offset of each variable in the region, in elements; multiples of `LANES`.
        shapes, strides: The memory order of each variable; dense, so a variable occupies `numel` elements.
        nexts: Where the next span of the region starts, of whatever variable; the region's end for the last.
        groups: Row of each variable in the hyper-parameter table.
        dtype: Of the region.
        slots: Row of each variable in its optimizer's step counts; 0, 1, 2, ... if not given.
        share: Elements of the region that a launch is about, as the share of one rank, from a multiple of `UNIT` to
            another; all if not given. Starts are then multiples of `UNIT` as well, so that no unit is cut.
        units: First unit of each variable in the buffers that hold an item for each unit; one behind the other if not
            given.
        firsts: Of shards: which element of the whole variable each begins with, a multiple of `LANES`; 0 if not given.
            What is drawn at random for an element then depends on its place in the whole.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    nexts: tuple[int, ...]
    groups: tuple[int, ...]
    dtype: torch.dtype
    slots: tuple[int, ...] = ()
    share: tuple[int, int] | None = None
    units: tuple[int, ...] = ()
    firsts: tuple[int, ...] = ()

    # Spans start on multiples of this in every stream, and are zero up to the next multiple.
    LANES = 16

    # Bytes that a span of values starts on a multiple of, and shares with no other.
    LINE = 128

    def __post_init__(self) -> None:
        if not self.slots:
            object.__setattr__(self, "slots", tuple(range(len(self.starts))))
        if not self.firsts:
            object.__setattr__(self, "firsts", (0,) * len(self.starts))
        if not self.units:
            counts = [-(-numel // UNIT) for numel in self.numels]
            object.__setattr__(self, "units", tuple(itertools.accumulate(counts, initial=0))[:-1])

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def numels(self) -> tuple[int, ...]:
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """End of each variable with its padding."""
        return tuple(start + round_up(numel, self.LANES) for start, numel in zip(self.starts, self.numels, strict=True))

    @cached_property
    def bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First element of each variable that a launch is about, and the one behind the last; equal where none is."""
        starts, numels = np.array(self.starts, dtype=np.int64), np.array(self.numels, dtype=np.int64)
        if self.share is None:
            return np.zeros_like(numels), numels
        first, stop = (np.clip(end - starts, 0, numels) for end in self.share)
        return np.where(first < stop, first, 0), np.where(first < stop, stop, 0)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Elements of each variable that a launch is about."""
        first, stop = self.bounds
        return stop - first

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which rules and norms are computed: float64 for float64, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def tile_table(segments: Segments, block: int) -> npt.NDArray[np.int64]:
    """Rows of all tiles, [tiles, 5] int64, in the order of their offsets.

    A tile is at most `block` elements of one variable. Its row is `[start, local, length, variable, group]`: where it
    starts in the region, where in the whole variable, how many elements it holds, and whose they are. Starts and
    locals are multiples of 16 and spans are padded to 16 elements, so streams are read and written at full vector width
    without luck; `length` counts no padding. A variable without elements in what the launch is about has one empty
    tile: its steps are counted like any other's.
    """
    begin, stop = segments.bounds
    counts = np.maximum(-(-segments.lengths // block), 1)
    variable = np.repeat(np.arange(len(segments), dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    local = begin[variable] + (np.arange(counts.sum(), dtype=np.int64) - first[variable]) * block
    starts = np.array(segments.starts, dtype=np.int64)
    groups = np.array(segments.groups, dtype=np.int64)
    length = np.minimum(stop[variable] - local, block)
    places = local + np.array(segments.firsts, dtype=np.int64)[variable]
    return np.stack([starts[variable] + local, places, length, variable, groups[variable]], axis=1)


def variable_table(segments: Segments, tiles: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[variables, 3] int64: first tile, number of tiles, slot in the step counts."""
    tiles_of = np.bincount(tiles[:, 3], minlength=len(segments))
    return np.stack([np.cumsum(tiles_of) - tiles_of, tiles_of, segments.slots], axis=1).astype(np.int64)


def unit_counts(segments: Segments) -> npt.NDArray[np.int64]:
    """[variables] int64: units of each variable; an empty one has one unit, as it has one tile."""
    units: npt.NDArray[np.int64] = np.maximum(-(-segments.lengths // UNIT), 1)
    return units


def unit_table(segments: Segments, block: int) -> npt.NDArray[np.int32]:
    """[tiles + 1] int32: the first unit of each tile, of the units of all variables in a row; then their number."""
    lengths = tile_table(segments, block)[:, 2]
    units = np.maximum(-(-lengths // UNIT), 1)
    return np.concatenate([[0], np.cumsum(units)]).astype(np.int32)
