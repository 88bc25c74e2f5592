"""The layout: where every variable lies. Integers only; no tensor is made or touched here."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch

from ..backend import UNIT, Segments, round_up
from .batches import Batch, Block, find_batches, matrix_of
from .ranks import GRAIN, Ranks
from .spec import VarSpec

ALIGNMENT = Segments.LINE
"""Bytes. A cache line of a GPU's L2; TorchInductor and TMA need 16, and a span shares its line with no other."""


class Span(NamedTuple):
    """Where a variable lies: elements `offset` to `offset + numel` of the region of its dtype, padded to 16.

    Attributes:
        unit: The first of its units, where those of a region's variables are counted in the order of their offsets.
    """

    spec: VarSpec
    offset: int
    unit: int = 0

    @property
    def numel(self) -> int:
        return self.spec.numel

    @property
    def stop(self) -> int:
        """End of the span with its padding."""
        return self.offset + round_up(self.numel, Segments.LANES)

    @property
    def units(self) -> int:
        """How many units it has: groups of 128 elements, counted from its start."""
        return -(-self.numel // UNIT)


@dataclass(frozen=True)
class Region:
    """The part of a layout with one dtype.

    Attributes:
        dtype: Of the values stream.
        numel: Elements of the values stream, padding included.
        trainable_numel: Elements of the trainable part, which comes first; gradients and state exist only for it.
        trainable_units: Units of the variables in it.
    """

    dtype: torch.dtype
    numel: int
    trainable_numel: int
    trainable_units: int = 0


@dataclass(frozen=True)
class Layout:
    """Spans in creation order and the regions they lie in.

    Physical order differs: in each region trainable variables come first, those among them first that lie side by side,
    shape by shape, and those last of which a border between ranks cuts units; frozen ones and buffers come last.

    Attributes:
        ranks: Over whom the trainable parts are divided, in equal ranges; None where they are one process's.
    """

    spans: tuple[Span, ...] = ()
    regions: tuple[Region, ...] = ()
    ranks: Ranks | None = None

    def share(self, dtype: torch.dtype, rank: int | None = None) -> tuple[int, int]:
        """Elements of a region's trainable part whose state a rank keeps, this one if not given; all without ranks."""
        numel = self.region_of[dtype].trainable_numel
        return (0, numel) if self.ranks is None else self.ranks.share(numel, rank)

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

    def unit_at(self, dtype: torch.dtype, element: int) -> int:
        """Units that end before an element of a region's trainable part, or before the padding that it lies in."""
        if element <= 0:
            return 0
        offsets, spans = self._trainable[dtype]
        if element >= self.region_of[dtype].trainable_numel or not spans:
            return self.region_of[dtype].trainable_units
        span = spans[bisect_right(offsets, element) - 1]
        ends = element >= span.offset + span.numel
        return span.unit + (span.units if ends else (element - span.offset) // UNIT)

    @cached_property
    def _trainable(self) -> dict[torch.dtype, tuple[list[int], list[Span]]]:
        """The trainable spans of each region with their offsets, in their order; of empty ones none."""
        found: dict[torch.dtype, tuple[list[int], list[Span]]] = {}
        for region in self.regions:
            spans = [s for s in self.spans if s.spec.dtype == region.dtype and s.spec.has_room and s.numel]
            spans.sort(key=lambda span: span.offset)
            found[region.dtype] = [span.offset for span in spans], spans
        return found

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

    def batches(self, chosen: Iterable[int], blocks: Sequence[Sequence[Block]] | None = None) -> list[Batch]:
        """The matrices in the chosen spans, in as few batches as can be seen at a glance; empty ones are in none.

        Args:
            chosen: Indices of spans.
            blocks: The matrices in each of them; each span is one if not given.

        Raises:
            SpecError: a span without blocks given is no matrix.
        """
        indices = list(chosen)
        if blocks is None:
            blocks = [[matrix_of(self.spans[i].spec)] for i in indices]
        places = {region.dtype: number for number, region in enumerate(self.regions)}
        matrices = (
            (self.spans[i].spec.dtype, self.spans[i].offset, i, block)
            for i, some in zip(indices, blocks, strict=True)
            for block in some
        )
        return find_batches(matrices, places)

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
            units=tuple(span.unit for span in spans),
        )
        return indices, segments


def element_alignment(dtype: torch.dtype, alignment: int = ALIGNMENT) -> int:
    """Multiple, in elements, that spans of a dtype start on: `alignment` bytes, and 16 elements in every stream."""
    return math.lcm(max(alignment // dtype.itemsize, 1), Segments.LANES)


def plan_layout(
    specs: Sequence[VarSpec],
    alignment: int = ALIGNMENT,
    side_by_side: Collection[int] = (),
    ranks: Ranks | None = None,
) -> Layout:
    """Lays out variables: one region per dtype, trainable first, every span aligned.

    Args:
        specs: In creation order, with unique names.
        alignment: Bytes, a power of two.
        side_by_side: Indices of specs to come first in their regions, those of one shape and memory order in a row.
        ranks: Who shares the state: trainable parts are padded to equal ranges, and no unit of 128 elements is cut.

    Returns:
        The layout. It depends on these alone.
    """
    spans: dict[int, Span] = {}
    regions: list[Region] = []
    for dtype in dict.fromkeys(spec.dtype for spec in specs):
        members = [i for i, spec in enumerate(specs) if spec.dtype == dtype]
        step = element_alignment(dtype, alignment)
        step = step if ranks is None else math.lcm(step, GRAIN)
        cursor = 0
        trainable_numel = trainable_units = unit = 0
        for i in _physical_order(specs, members, side_by_side):
            spec, numel = specs[i], specs[i].numel
            if not spec.has_room:
                cursor = max(cursor, trainable_numel)
            spans[i] = Span(spec, cursor, unit)
            cursor = round_up(cursor + numel, step)
            unit += -(-numel // UNIT)
            if spec.has_room:
                trainable_numel, trainable_units = cursor if ranks is None else ranks.padded(cursor), unit
        cursor = max(cursor, trainable_numel)
        regions.append(Region(dtype, cursor, trainable_numel, trainable_units))
    return Layout(tuple(spans[i] for i in range(len(specs))), tuple(regions), ranks)


def _physical_order(specs: Sequence[VarSpec], members: Sequence[int], side_by_side: Collection[int]) -> list[int]:
    """Trainable specs first; of these, those that lie side by side: shape by shape, in the order shapes first occur.

    What cuts units is last of them: its states may be stored otherwise, in streams that cover it alone.
    """
    chosen = [i for i in members if i in side_by_side and specs[i].has_room] if side_by_side else []
    kinds = {kind: n for n, kind in enumerate(dict.fromkeys((specs[i].shape, specs[i].stride) for i in chosen))}
    chosen.sort(key=lambda i: kinds[specs[i].shape, specs[i].stride])
    first = set(chosen)
    others = [i for i in members if i not in first] if first else members
    return chosen + sorted(others, key=lambda i: (not specs[i].has_room, specs[i].cuts_units))
