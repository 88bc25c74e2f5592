"""The device pointer table: where each variable's gradient lies this time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import FlatvarsError
from .segments import Segments
from .sources import SOURCE_DTYPES, in_memory_order
from .tiles import DTYPES, is_capturing, upload

# Address of a gradient without elements: not 0, which means untouched, and never read.
EMPTY = 16

# Uploads that one capture may hold: of accumulate for each of several micro-batches, of norm and step.
SPARES = 8


@dataclass(frozen=True)
class Sources:
    """What a launch needs to know of its gradients.

    Attributes:
        table: [variables, 2] int64 on the device: address (0: none) and dtype code.
        dtype: Triton dtype of all of them, or None where they differ.
        aligned: Whether all lie on 16-byte boundaries.
    """

    table: Tensor
    dtype: Any
    aligned: bool


class PointerTable:
    """Uploads addresses, and skips the upload while they repeat, as they do with an allocator in steady state."""

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments = segments
        self.table = torch.zeros((len(segments), 2), dtype=torch.int64, device=device)
        self.uploads = 0
        self._seen: list[Any] = []
        self._sources = Sources(self.table, DTYPES[torch.float32], True)
        # Alive until the next upload: copies made of gradients, and memory that a captured graph copies from.
        self._kept: list[Tensor] = []
        self._captured: list[Tensor] = []
        self._spares: list[Tensor] = []

    def scattered(self, grads: Sequence[Tensor | None]) -> Sources:
        """Points at gradients wherever they lie; None leaves its variable untouched.

        A gradient in another memory order than its variable, or sparse, is copied first.

        Raises:
            GradientError: names the variable whose gradient no kernel can read.
        """
        kept: list[Tensor] = []
        shapes, strides = self.segments.shapes, self.segments.strides
        ready = list(grads)
        for i, grad in enumerate(ready):
            if grad is not None and not _is_ready(grad, shapes[i], strides[i]):
                ready[i] = in_memory_order(self.segments.names[i], grad, shapes[i], strides[i])
                if ready[i] is not grad:
                    kept.append(ready[i])  # type: ignore[arg-type]
        seen = [(0, None) if g is None else (g.data_ptr() or EMPTY, g.dtype) for g in ready]
        self._kept = kept
        return self._point(seen)

    def gathered(self, stream: Tensor, touched: Sequence[bool]) -> Sources:
        """Points into the flat gradient stream, for the variables that are touched."""
        base, size = stream.data_ptr(), stream.element_size()
        starts = self.segments.starts
        return self._point(
            [
                (base + start * size, stream.dtype) if hit else (0, None)
                for start, hit in zip(starts, touched, strict=True)
            ]
        )

    def _point(self, seen: list[Any]) -> Sources:
        # Once a graph was captured, a replay may have put its own addresses into the table: what was seen is no proof.
        # And a graph must bring its addresses itself, also those that are there while it is captured.
        if seen == self._seen and not self._captured and not is_capturing(self.table):
            return self._sources
        rows = [(address, 0 if dtype is None else SOURCE_DTYPES.index(dtype)) for address, dtype in seen]
        self._upload(torch.tensor(rows, dtype=torch.int64).reshape(-1, 2))
        dtypes = {dtype for _, dtype in seen if dtype is not None}
        aligned = all(address % 16 == 0 for address, _ in seen)
        uniform = DTYPES[next(iter(dtypes))] if len(dtypes) == 1 else None
        self._sources = Sources(self.table, uniform if dtypes else DTYPES[torch.float32], aligned)
        self._seen = seen
        self.uploads += 1
        return self._sources

    def _upload(self, host: Tensor) -> None:
        if not is_capturing(self.table):
            upload(self.table, host)
            while self.table.is_cuda and len(self._spares) < SPARES:
                self._spares.append(torch.empty_like(host, pin_memory=True))
            return
        # A replay copies from this memory again, so it must live, unchanged, as long as the graph may; and page-locked
        # memory cannot be allocated during a capture, so it was set aside before.
        if not self._spares:
            raise FlatvarsError(
                f"a CUDA graph captured a step before it ran once, or more than {SPARES} steps of one store; run a few "
                "steps first, and capture fewer at a time"
            )
        spare = self._spares.pop()
        spare.copy_(host)
        self.table.copy_(spare, non_blocking=True)
        self._captured.append(spare)


def _is_ready(grad: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a kernel can read the gradient where it lies."""
    plain = grad.dtype in DTYPES and grad.layout == torch.strided and not grad.is_neg()
    return plain and grad.stride() == stride and grad.shape == shape
