"""Flat runs: what the torch backend steps over.

A run is a stretch of the region whose variables share a group and a step count, with one flat gradient. Large variables
are runs of their own and their gradients are read where they lie; small ones that lie side by side are gathered into
one scratch buffer, so that ten thousand of them cost one operator call and not ten thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..errors import GradientError
from ..segments import Segments
from ..sources import flat, in_memory_order

# Below, gathering (about 1 us a tensor and a copy of its bytes) beats a call of its own (about 10 us).
LARGE = 65_536
# Elements of a gather that pay for a second thread.
SPLIT = 262_144


@dataclass
class Run:
    """Elements `start` to `stop` of the region, padding between variables included.

    Attributes:
        variables: Positions in the segments.
        grad: [stop - start], in the memory order of the values.
        owned: Whether `grad` is scratch that may be overwritten.
    """

    start: int
    stop: int
    group: int
    variables: list[int]
    grad: Tensor | None = None
    owned: bool = False
    _slices: dict[int, Tensor] = field(default_factory=dict)

    def of(self, stream: Tensor) -> Tensor:
        """The stretch of a stream, [stop - start]."""
        key = stream.data_ptr()
        if key not in self._slices:
            self._slices[key] = stream[self.start : self.stop]
        return self._slices[key]

    def padding(self, segments: Segments) -> Tensor:
        """Positions in the run that belong to no variable."""
        real = torch.zeros(self.stop - self.start, dtype=torch.bool)
        for i in self.variables:
            first = segments.starts[i] - self.start
            real[first : first + segments.numels[i]] = True
        return torch.nonzero(~real).squeeze(1)


def merge(segments: Segments, chosen: Sequence[int], counts: np.ndarray, limit: int | None) -> list[Run]:
    """Merges neighbors of one group and step count; a variable of `limit` elements or more stays alone."""
    runs: list[Run] = []
    open_run: Run | None = None
    for i in chosen:
        large = limit is not None and segments.numels[i] >= limit
        start, stop, group = segments.starts[i], segments.stops[i], segments.groups[i]
        neighbor = open_run is not None and not large and open_run.group == group
        if open_run is not None and neighbor and _adjacent(segments, open_run.variables[-1], i, counts):
            open_run.variables.append(i)
            open_run.stop = stop
            continue
        run = Run(start, start + segments.numels[i] if large else stop, group, [i])
        runs.append(run)
        open_run = None if large else run
    return runs


def _adjacent(segments: Segments, left: int, right: int, counts: np.ndarray) -> bool:
    # Spans are aligned to 128 bytes, so up to 127 elements of padding may lie between neighbors; more is a variable.
    gap = segments.starts[right] - segments.stops[left]
    return right == left + 1 and gap < 128 and counts[left] == counts[right]


class Gather:
    """The plan of one pattern of touched variables: its runs, and where each small gradient goes in the scratch."""

    def __init__(self, segments: Segments, chosen: Sequence[int], counts: np.ndarray) -> None:
        self.segments = segments
        self.runs = merge(segments, chosen, counts, LARGE)
        self.large = [run for run in self.runs if segments.numels[run.variables[0]] >= LARGE]
        small = [run for run in self.runs if segments.numels[run.variables[0]] < LARGE]
        self.small = [i for run in small for i in run.variables]
        self.scratch = torch.zeros(sum(run.stop - run.start for run in small), dtype=segments.compute_dtype)
        self._places: list[tuple[int, int]] = []  # offset in the scratch, end with padding
        base = 0
        for run in small:
            run.grad, run.owned = self.scratch[base : base + run.stop - run.start], True
            ends = [*(segments.starts[i] for i in run.variables[1:]), run.stop]
            for i, end in zip(run.variables, ends, strict=True):
                self._places.append((base + segments.starts[i] - run.start, base + end - run.start))
            base += run.stop - run.start
        self._vectors = all(len(segments.shapes[i]) == 1 for i in self.small)
        self._parts = self._split()

    def _split(self) -> list[tuple[int, int]]:
        """Ranges of `small`, one a thread."""
        threads = torch.get_num_threads() if len(self.scratch) >= SPLIT else 1
        bounds = [len(self.small) * t // threads for t in range(threads + 1)]
        return [(a, b) for a, b in pairwise(bounds) if b > a]

    def fill(self, grads: Sequence[Tensor | None]) -> list[Run]:
        """Points every run at its gradient: copies the small ones, borrows the large ones."""
        names, shapes, strides = self.segments.names, self.segments.shapes, self.segments.strides
        for run in self.large:
            i = run.variables[0]
            grad = grads[i]
            assert grad is not None
            run.grad = flat(in_memory_order(names[i], grad, shapes[i], strides[i]))
        small = [grads[i] for i in self.small]
        if len(self._parts) > 1:
            list(_threads(len(self._parts)).map(lambda part: self._fill(small, *part), self._parts))
        elif self._parts:
            self._fill(small, *self._parts[0])
        return self.runs

    def _fill(self, small: list[Tensor | None], first: int, last: int) -> None:
        try:
            if self._vectors:
                self._concatenate(small, first, last)
            else:
                torch._foreach_copy_(self._views()[first:last], small[first:last])  # type: ignore[arg-type]
        except (RuntimeError, GradientError):
            # A sparse or foreign gradient among them: find it, mend it or say which.
            for view, i, grad in zip(self._views()[first:last], self.small[first:last], small[first:last], strict=True):
                assert grad is not None
                shape, stride = self.segments.shapes[i], self.segments.strides[i]
                view.copy_(in_memory_order(self.segments.names[i], grad, shape, stride))

    def _concatenate(self, small: list[Tensor | None], first: int, last: int) -> None:
        pieces: list[Tensor | None] = []
        for k in range(first, last):
            pieces.append(small[k])
            gap = self._places[k][1] - self._places[k][0] - self.segments.numels[self.small[k]]
            if gap:
                pieces.append(_zeros(gap))
        out = self.scratch[self._places[first][0] : self._places[last - 1][1]]
        length = len(out)
        torch.cat(pieces, out=out)  # type: ignore[arg-type]
        if len(out) != length:
            raise GradientError("gradients do not have the shapes of their variables")

    def _views(self) -> list[Tensor]:
        if not hasattr(self, "_cached_views"):
            shapes, strides = self.segments.shapes, self.segments.strides
            self._cached_views = [
                self.scratch.as_strided(shapes[i], strides[i], place)
                for i, (place, _) in zip(self.small, self._places, strict=True)
            ]
        return self._cached_views


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="flatvars-gather")


@cache
def _zeros(count: int) -> Tensor:
    return torch.zeros(count)
