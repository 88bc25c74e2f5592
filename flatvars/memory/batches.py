"""Batches: matrices of one shape at equal distances, which one strided view shows as [count, rows, columns].

Integers only. Matrix products take any distance between the matrices of a batch, so nothing is stacked or copied, and
the padding between two variables is no hindrance. A variable may be one matrix or several: blocks of its rows or
columns, which then are matrices of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SpecError
from .spec import VarSpec


class Block(NamedTuple):
    """A matrix inside a variable.

    Attributes:
        offset: Of its first element, in elements from the variable's first.
        shape: Rows and columns.
        strides: From row to row and from column to column, in elements.
    """

    offset: int
    shape: tuple[int, int]
    strides: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Matrices of one shape and memory order in a region.

    Attributes:
        dtype: Of the region.
        offset: Element of the region at which the first begins.
        count: Of matrices.
        distance: Elements from the beginning of one to that of the next.
        shape: Rows and columns of each.
        strides: From row to row and from column to column, in elements.
        members: Index of the span that each matrix lies in.
    """

    dtype: torch.dtype
    offset: int
    count: int
    distance: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    members: tuple[int, ...]

    @property
    def numel(self) -> int:
        return self.count * self.shape[0] * self.shape[1]

    def view(self, buffer: Tensor, base: int = 0) -> Tensor:
        """The matrices, [count, rows, columns], over a buffer [numel] that begins at element `base` of the region."""
        return buffer.as_strided((self.count, *self.shape), (self.distance, *self.strides), self.offset - base)

    def pieces(self, most: int) -> list[Batch]:
        """The batch in pieces of at most `most` matrices, as even as can be."""
        number = -(-self.count // max(most, 1))
        cuts = [self.count * i // number for i in range(number + 1)]
        return [
            Batch(
                self.dtype,
                self.offset + first * self.distance,
                last - first,
                self.distance,
                self.shape,
                self.strides,
                self.members[first:last],
            )
            for first, last in pairwise(cuts)
        ]


def matrix_of(spec: VarSpec) -> Block:
    """A variable as one matrix: its first axis, and all others in memory order.

    Raises:
        SpecError: fewer than two axes, or the first is not the one with the largest or the smallest stride.
    """
    shape, stride = spec.shape, spec.stride
    if len(shape) < 2:
        raise SpecError(f"variable {spec.name!r} has shape {shape} and is no matrix")
    rows, columns = shape[0], spec.numel // max(shape[0], 1)
    if len(shape) == 2:
        return Block(0, (rows, columns), (stride[0], stride[1]))
    if rows > 1 and columns > 1 and stride[0] != columns:
        raise SpecError(
            f"variable {spec.name!r} has shape {shape} and strides {stride}: its first axis does not come first in "
            "memory, so that it is no matrix [first axis, all others]"
        )
    return Block(0, (rows, columns), (columns, 1))


def split_block(block: Block, sizes: Sequence[int], axis: int) -> list[Block]:
    """Blocks of some sizes, one after the other, along the rows (axis 0) or columns (axis 1) of a matrix.

    Raises:
        SpecError: sizes that are not positive or do not add up to the axis.
    """
    if sum(sizes) != block.shape[axis] or min(sizes, default=0) < 1:
        raise SpecError(f"sizes {tuple(sizes)} do not add up to the {block.shape[axis]} of a matrix {block.shape}")
    found, start = [], 0
    for size in sizes:
        shape = (size, block.shape[1]) if axis == 0 else (block.shape[0], size)
        found.append(Block(block.offset + start * block.strides[axis], shape, block.strides))
        start += size
    return found


Placed = tuple[int, int, int]
"""A matrix: element of the region at which it begins, number of its block in the variable, index of the span."""


def find_batches(
    matrices: Iterable[tuple[torch.dtype, int, int, Block]], places: dict[torch.dtype, int]
) -> list[Batch]:
    """As few batches as can be seen at a glance, in the order of their first matrices.

    Args:
        matrices: Of each: dtype of its region, offset of its variable, index of the span, and the block.
        places: Position of each region.
    """
    alike: dict[tuple[torch.dtype, tuple[int, int], tuple[int, int]], list[Placed]] = {}
    numbers: dict[int, int] = {}
    for dtype, offset, index, block in matrices:
        numbers[index] = numbers.get(index, -1) + 1
        if 0 not in block.shape:
            placed = offset + block.offset, numbers[index], index
            alike.setdefault((dtype, block.shape, block.strides), []).append(placed)
    found: list[Batch] = []
    for (dtype, shape, strides), placed_ones in alike.items():
        together = _runs(sorted(placed_ones))
        # Blocks of columns, or of variables with padding behind them, are equally far from those of other variables.
        by_number = sorted(placed_ones, key=lambda one: (one[1], one[0]))
        apart = [run for _, ones in groupby(by_number, key=lambda one: one[1]) for run in _runs(list(ones))]
        for run in min(together, apart, key=len):
            distance = run[1][0] - run[0][0] if len(run) > 1 else shape[0] * shape[1]
            members = tuple(index for _, _, index in run)
            found.append(Batch(dtype, run[0][0], len(run), distance, shape, strides, members))
    return sorted(found, key=lambda batch: (places[batch.dtype], batch.offset, batch.distance))


def _runs(placed: list[Placed]) -> list[list[Placed]]:
    """Runs of equal distances, each as long as it goes."""
    runs: list[list[Placed]] = []
    for one in placed:
        run = runs[-1] if runs else []
        if run and (len(run) == 1 or one[0] - run[-1][0] == run[1][0] - run[0][0]):
            run.append(one)
        else:
            runs.append([one])
    return runs
