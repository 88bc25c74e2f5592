"""A run of a variable's memory as boxes: rectangular pieces, which is how checkpoints of many ranks know tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangular piece of a tensor.

    Attributes:
        offsets: First index of each axis.
        sizes: Length of each axis.
        start: Where its elements begin, in memory order, counted from the tensor's first.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


def boxes_of(first: int, stop: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> list[Box]:
    """Elements `first` to `stop` of a dense tensor, counted in memory order, in at most 2 * axes - 1 boxes."""
    order = sorted(range(len(shape)), key=lambda axis: (-stride[axis], axis))
    back = [order.index(axis) for axis in range(len(shape))]
    found = _row_major(first, stop, tuple(shape[axis] for axis in order))
    return [Box(_picked(box.offsets, back), _picked(box.sizes, back), box.start) for box in found]


def strides_of(box: Box, stride: tuple[int, ...]) -> tuple[int, ...]:
    """Of a box whose elements lie one behind another, with axes in the memory order of the whole tensor."""
    strides, step = [0] * len(stride), 1
    for axis in sorted(range(len(stride)), key=lambda axis: (stride[axis], -axis)):
        strides[axis] = step
        step *= box.sizes[axis]
    return tuple(strides)


def _row_major(first: int, stop: int, shape: tuple[int, ...]) -> list[Box]:
    if first >= stop:
        return []
    if not shape:
        return [Box((), (), first)]
    inner = math.prod(shape[1:])
    begin, end = -(-first // inner), stop // inner
    if begin > end:  # within one row
        return _in_row(end, first, stop, shape[1:], inner)
    found = _in_row(begin - 1, first, begin * inner, shape[1:], inner)
    if begin < end:
        found.append(Box((begin, *[0] * len(shape[1:])), (end - begin, *shape[1:]), begin * inner))
    return found + _in_row(end, end * inner, stop, shape[1:], inner)


def _in_row(row: int, first: int, stop: int, shape: tuple[int, ...], inner: int) -> list[Box]:
    boxes = _row_major(first - row * inner, stop - row * inner, shape)
    return [Box((row, *box.offsets), (1, *box.sizes), box.start + row * inner) for box in boxes]


def _picked(numbers: tuple[int, ...], axes: list[int]) -> tuple[int, ...]:
    return tuple(numbers[axis] for axis in axes)
