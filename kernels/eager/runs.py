"""Flat runs: what the torch backend steps over.

A run is a stretch of the region whose variables share a group and a step count, with one flat gradient. Large variables
are runs of their own and their gradients are read where they lie; small ones that lie side by side are gathered into
one scratch buffer, so that ten thousand of them cost one operator call and not ten thousand. A variable with masked
elements is a run of its own, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..addresses import in_memory_order
from ..errors import GradientError
from ..segments import Segments

# Below, gathering (about 1 us a tensor and a copy of its bytes) beats a call of its own (about 10 us).
LARGE = 65_536
# Elements of a masked run that are worked on at a time: what must be put back is a copy of no more. 16 MB of float32.
MASK_CHUNK = 4_194_304


@dataclass
class Run:
    """Elements `start` to `stop` of the region, padding between variables included.

    Attributes:
        variables: Positions in the segments.
        mask: bool [stop - start], True where value and state stay and the gradient counts as 0; None: nowhere.
    """

    start: int
    stop: int
    group: int
    variables: list[int]
    mask: Tensor | None = None
    _slices: dict[int, Tensor] = field(default_factory=dict)
    _padding: Tensor | None = None

    def of(self, stream: Tensor, base: int = 0) -> Tensor:
        """The stretch of a stream that begins at element `base` of the region, [stop - start]."""
        key = stream.data_ptr()
        if key not in self._slices:
            self._slices[key] = stream[self.start - base : self.stop - base]
        return self._slices[key]

    def norm_pieces(self, grad: Tensor) -> Iterator[Tensor]:
        """Pieces of a gradient of this run with zeros where it is masked: what a norm is taken over."""
        if self.mask is None:
            yield grad
            return
        for part, mask in zip(*(torch.split(x, MASK_CHUNK) for x in (grad, self.mask)), strict=True):
            yield part.masked_fill(mask, 0.0)

    def padding(self, segments: Segments) -> Tensor:
        """Positions in the run that belong to no variable; kept, as runs do not change once they are merged."""
        if self._padding is None:
            ends = [*(segments.starts[i] for i in self.variables[1:]), self.stop]
            stops = [segments.starts[i] + segments.numels[i] for i in self.variables]
            gaps = [torch.arange(stop - self.start, end - self.start) for stop, end in zip(stops, ends, strict=True)]
            self._padding = torch.cat(gaps)
        return self._padding


@dataclass(frozen=True)
class Loaded:
    """A run with its gradient of this step.

    Attributes:
        grad: [stop - start], in the memory order of the values.
        gathered: Whether `grad` lies in scratch, which may be overwritten.
    """

    run: Run
    grad: Tensor
    gathered: bool


def find_masks(segments: Segments, frozen: Tensor | None) -> dict[int, Tensor]:
    """Masks of the variables that have masked elements, by position: bool [numel], in memory order.

    Args:
        frozen: uint8 [numel of the stream], not 0 where masked; None where no element is.
    """
    if frozen is None:
        return {}
    pairs = zip(segments.starts, segments.numels, strict=True)
    spans = [frozen[start : start + numel].view(torch.bool) for start, numel in pairs]
    return {i: span for i, span in enumerate(spans) if span.any()}


def merge(
    segments: Segments, chosen: Sequence[int], counts: np.ndarray, limit: int | None, masks: Mapping[int, Tensor]
) -> list[Run]:
    """Merges neighbors of one group and step count; masked ones and those of `limit` elements or more stay alone."""
    runs: list[Run] = []
    open_run: Run | None = None
    for i in chosen:
        alone = i in masks or (limit is not None and segments.numels[i] >= limit)
        start, stop, group = segments.starts[i], segments.stops[i], segments.groups[i]
        neighbor = open_run is not None and not alone and open_run.group == group
        if open_run is not None and neighbor and _adjacent(segments, open_run.variables[-1], i, counts):
            open_run.variables.append(i)
            open_run.stop = stop
            continue
        run = Run(start, start + segments.numels[i] if alone else stop, group, [i], masks.get(i))
        runs.append(run)
        open_run = None if alone else run
    return runs


def _adjacent(segments: Segments, left: int, right: int, counts: np.ndarray) -> bool:
    # Between them may lie padding, but no variable: one that is frozen or another optimizer's must not be stepped.
    return segments.nexts[left] == segments.starts[right] and bool(counts[left] == counts[right])


class Gather:
    """The plan of one pattern of touched variables: its runs, and where each small gradient goes in the scratch."""

    def __init__(
        self, segments: Segments, chosen: Sequence[int], counts: np.ndarray, masks: Mapping[int, Tensor]
    ) -> None:
        self.segments = segments
        self.runs = merge(segments, chosen, counts, LARGE, masks)
        small = {
            k: run for k, run in enumerate(self.runs) if run.mask is None and segments.numels[run.variables[0]] < LARGE
        }
        self.small = [i for run in small.values() for i in run.variables]
        self.scratch = torch.zeros(sum(run.stop - run.start for run in small.values()), dtype=segments.compute_dtype)
        self._gathered: dict[int, Loaded] = {}  # by position in the runs
        # What is concatenated into the scratch: a slot for each gradient, and zeros between neighbors.
        self._template: list[Tensor | None] = []
        self._slots: list[int] = []
        self._offsets: list[int] = []
        self._ends: list[int] = []
        base = 0
        for k, run in small.items():
            self._gathered[k] = Loaded(run, self.scratch[base : base + run.stop - run.start], gathered=True)
            self._place(run, base)
            base += run.stop - run.start
        # One operator call either way: `cat` takes vectors alone, and copies them at twice the speed.
        self._vectors = all(len(segments.shapes[i]) == 1 for i in self.small)

    def _place(self, run: Run, base: int) -> None:
        ends = [*(self.segments.starts[i] for i in run.variables[1:]), run.stop]
        for i, end in zip(run.variables, ends, strict=True):
            start, numel = self.segments.starts[i], self.segments.numels[i]
            self._slots.append(len(self._template))
            self._offsets.append(base + start - run.start)
            self._ends.append(base + end - run.start)
            self._template.append(None)
            if end - start > numel:
                self._template.append(torch.zeros(end - start - numel))

    @cached_property
    def places(self) -> tuple[dict[int, int], dict[int, int]]:
        """Where each small gradient starts in the scratch, and where the next one does, by variable."""
        return dict(zip(self.small, self._offsets, strict=True)), dict(zip(self.small, self._ends, strict=True))

    @cached_property
    def _views(self) -> list[Tensor]:
        shapes, strides = self.segments.shapes, self.segments.strides
        places = zip(self.small, self._offsets, strict=True)
        return [self.scratch.as_strided(shapes[i], strides[i], offset) for i, offset in places]

    def load(self, grads: Sequence[Tensor | None]) -> list[Loaded]:
        """The runs with their gradients: copies the small ones, borrows the large ones."""
        if self.small:
            self._copy(grads if len(self.small) == len(grads) else [grads[i] for i in self.small])
        return [self._gathered.get(k) or self._borrow(run, grads[run.variables[0]]) for k, run in enumerate(self.runs)]

    def _borrow(self, run: Run, grad: Tensor | None) -> Loaded:
        assert grad is not None
        i = run.variables[0]
        segments = self.segments
        grad = in_memory_order(segments.names[i], grad, segments.shapes[i], segments.strides[i])
        return Loaded(run, flat(grad), gathered=False)

    def _copy(self, small: Sequence[Tensor | None]) -> None:
        try:
            if self._vectors:
                self._concatenate(small)
            else:
                torch._foreach_copy_(self._views, small)  # type: ignore[arg-type]
        except (RuntimeError, TypeError, GradientError):
            # A sparse or foreign gradient among them: mend it, or say which.
            for view, i, grad in zip(self._views, self.small, small, strict=True):
                assert grad is not None
                shape, stride = self.segments.shapes[i], self.segments.strides[i]
                view.copy_(in_memory_order(self.segments.names[i], grad, shape, stride))

    def _concatenate(self, small: Sequence[Tensor | None]) -> None:
        pieces = small
        if len(self._template) > len(self._slots):
            pieces = self._template.copy()
            for slot, grad in zip(self._slots, small, strict=True):
                pieces[slot] = grad
        length = len(self.scratch)
        torch.cat(pieces, out=self.scratch)  # type: ignore[arg-type]
        if len(self.scratch) != length:
            raise GradientError("gradients do not have the shapes of their variables")


def flat(grad: Tensor) -> Tensor:
    """The memory of a dense tensor as [numel], whatever the order of its axes."""
    return grad.as_strided((grad.numel(),), (1,))
