"""The layout: where every variable lies. Integers only; no tensor is made or touched here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from ..backend import Segments, round_up
from .spec import VarSpec

ALIGNMENT = 128
"""Bytes. A cache line of a GPU's L2; TorchInductor and TMA need 16, and a span shares its line with no other."""


@dataclass(frozen=True)
class Span:
    """Where a variable lies: elements `offset` to `offset + numel` of the region of its dtype, padded to 16."""

    spec: VarSpec
    offset: int

    @property
    def numel(self) -> int:
        return self.spec.numel

    @property
    def stop(self) -> int:
        """End of the span with its padding."""
        return self.offset + round_up(self.numel, Segments.LANES)


@dataclass(frozen=True)
class Region:
    """The part of a layout with one dtype.

    Attributes:
        dtype: Of the values stream.
        numel: Elements of the values stream, padding included.
        trainable_numel: Elements of the trainable part, which comes first; gradients and state exist only for it.
    """

    dtype: torch.dtype
    numel: int
    trainable_numel: int


@dataclass(frozen=True)
class Layout:
    """Spans in creation order and the regions they lie in.

    Physical order differs: in each region trainable variables come first, frozen ones and buffers behind them.
    """

    spans: tuple[Span, ...] = ()
    regions: tuple[Region, ...] = ()

    @cached_property
    def region_of(self) -> dict[torch.dtype, Region]:
        return {region.dtype: region for region in self.regions}

    @cached_property
    def _next_offset(self) -> list[int]:
        """Where the span behind each one starts, in its region."""
        after = [0] * len(self.spans)
        for region in self.regions:
            members = [i for i, span in enumerate(self.spans) if span.spec.dtype == region.dtype]
            members.sort(key=lambda i: (self.spans[i].offset, i))
            for i, j in pairwise(members):
                after[i] = self.spans[j].offset
            after[members[-1]] = region.numel
        return after

    def stretches(self, chosen: Iterable[int]) -> list[tuple[torch.dtype, int, int]]:
        """What the chosen trainable spans cover, with padding behind them, in as few (dtype, start, stop) as can be."""
        found: list[tuple[torch.dtype, int, int]] = []
        place = {region.dtype: number for number, region in enumerate(self.regions)}
        for i in sorted(chosen, key=lambda i: (place[self.spans[i].spec.dtype], self.spans[i].offset, i)):
            dtype, start = self.spans[i].spec.dtype, self.spans[i].offset
            stop = min(self._next_offset[i], self.region_of[dtype].trainable_numel)
            if found and found[-1][0] == dtype and found[-1][2] == start:
                found[-1] = (dtype, found[-1][1], stop)
            else:
                found.append((dtype, start, stop))
        return found

    def segments(
        self, chosen: Sequence[int], groups: Sequence[int] | None = None, slots: Sequence[int] | None = None
    ) -> tuple[list[int], Segments]:
        """The chosen spans of one dtype, ordered by offset, as kernels want them; and their indices in that order.

        Args:
            chosen: Indices of spans of one dtype, at least one.
            groups: Row of the hyper-parameter table of each chosen span; 0 if not given.
            slots: Row of the step counts of each chosen span; its position among them if not given.
        """
        rows = zip(chosen, groups or [0] * len(chosen), slots or [0] * len(chosen), strict=True)
        # Empty spans share their offset with the next one: creation order keeps the sort stable and total.
        chosen_rows = sorted(rows, key=lambda row: (self.spans[row[0]].offset, row[0]))
        indices = [i for i, _, _ in chosen_rows]
        spans = [self.spans[i] for i in indices]
        segments = Segments(
            names=tuple(span.spec.name for span in spans),
            starts=tuple(span.offset for span in spans),
            shapes=tuple(span.spec.shape for span in spans),
            strides=tuple(span.spec.stride for span in spans),
            nexts=tuple(self._next_offset[i] for i in indices),
            groups=tuple(group for _, group, _ in chosen_rows),
            dtype=spans[0].spec.dtype,
            slots=tuple(slot for _, _, slot in chosen_rows) if slots else (),
        )
        return indices, segments


def element_alignment(dtype: torch.dtype, alignment: int = ALIGNMENT) -> int:
    """Multiple, in elements, that spans of a dtype start on: `alignment` bytes, and 16 elements in every stream."""
    return math.lcm(max(alignment // dtype.itemsize, 1), Segments.LANES)


def plan_layout(specs: Sequence[VarSpec], alignment: int = ALIGNMENT) -> Layout:
    """Lays out variables: one region per dtype, trainable first, every span aligned.

    Args:
        specs: In creation order, with unique names.
        alignment: Bytes, a power of two.

    Returns:
        The layout. It depends on the specs and the alignment alone.
    """
    offsets: dict[int, int] = {}
    regions: list[Region] = []
    for dtype in dict.fromkeys(spec.dtype for spec in specs):
        members = [i for i, spec in enumerate(specs) if spec.dtype == dtype]
        step = element_alignment(dtype, alignment)
        cursor = 0
        trainable_numel = 0
        for i in sorted(members, key=lambda i: not specs[i].has_room):
            offsets[i] = cursor
            cursor = round_up(cursor + specs[i].numel, step)
            if specs[i].has_room:
                trainable_numel = cursor
        regions.append(Region(dtype, cursor, trainable_numel))
    return Layout(tuple(Span(spec, offsets[i]) for i, spec in enumerate(specs)), tuple(regions))
