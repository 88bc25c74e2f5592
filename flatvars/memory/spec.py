"""VarSpec: what a variable is, before any memory exists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..errors import SpecError


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements, as torch gives them (an axis of length 0 counts as 1)."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


@lru_cache(maxsize=4096)  # a model has thousands of tensors, and few shapes
def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill one run of memory without gaps or overlaps, in any order of the axes."""
    if 0 in shape:
        return True
    step = 1
    for length, distance in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and distance != step:
            break
        step *= length
    else:
        return True  # row-major, as nearly all are
    step = 1
    for length, distance in sorted(zip(shape, stride, strict=True), key=lambda axis: (axis[1], axis[0])):
        if length == 1:
            continue
        if distance != step:
            return False
        step *= length
    return True


@dataclass(frozen=True, init=False)
class VarSpec:
    """A named tensor to be carved out of a store.

    Attributes:
        name: Dotted path, unique in the store.
        shape: Lengths of the axes.
        dtype: Of the values; it chooses the region.
        stride: Memory order of the axes, in elements; dense. Row-major if not given.
        has_room: Whether there is room for its gradient and optimizer state. Only floating dtypes can have it.
        cuts_units: Of a shard: whether a border between ranks lies inside of a unit of 128 elements of the whole
            variable. The same on all ranks.

    Raises:
        SpecError: empty name or path part, negative length, strides that are not dense, room for an integer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...] = ()
    has_room: bool = True
    cuts_units: bool = False

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        stride: tuple[int, ...] = (),
        has_room: bool = True,
        cuts_units: bool = False,
    ) -> None:
        if ".." in f".{name}.":
            raise SpecError(f"variable name {name!r} has an empty part; use a dotted path such as 'layer1.weight'")
        if shape and min(shape) < 0:
            raise SpecError(f"variable {name!r} has a negative length in shape {shape}")
        stride = stride or contiguous_stride(shape)
        if len(stride) != len(shape) or not is_dense(shape, stride):
            raise SpecError(
                f"variable {name!r} has strides {stride} for shape {shape}, which are not dense; "
                "give the strides of a contiguous or permuted (for example channels-last) tensor"
            )
        if has_room and not dtype.is_floating_point:
            raise SpecError(
                f"variable {name!r} has dtype {dtype} and cannot be trained; "
                "only floating dtypes have gradients: add it with trainable=False"
            )
        # All at once: a frozen dataclass sets them one by one, which takes as long as all that is checked here.
        self.__dict__.update(
            name=name, shape=shape, dtype=dtype, stride=stride, has_room=has_room, cuts_units=cuts_units
        )

    @property
    def numel(self) -> int:
        return math.prod(self.shape)
