"""The variables of one launch as plain integers: where each lies and in which memory order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


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
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    nexts: tuple[int, ...]
    groups: tuple[int, ...]
    dtype: torch.dtype

    # Spans start on multiples of this in every stream, and are zero up to the next multiple.
    LANES = 16

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def numels(self) -> tuple[int, ...]:
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """End of each variable with its padding."""
        return tuple(start + round_up(numel, self.LANES) for start, numel in zip(self.starts, self.numels, strict=True))

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which rules and norms are computed: float64 for float64, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32
