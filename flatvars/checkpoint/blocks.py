"""Tensors in bounded pieces, in row-major order: what a file holds, whatever the order of a variable in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..memory.layout import Span
from ..memory.spec import contiguous_stride
from ..memory.streams import Stream

PIECE = 1 << 24
"""Bytes that are read, copied or summed at a time."""

Index = tuple[int | slice, ...]


def blocks(shape: tuple[int, ...], limit: int) -> Iterator[tuple[Index, int, int]]:
    """Cuts a shape into runs of its row-major order of at most `limit` elements.

    Returns:
        Of each run: an index that selects it, its first element and its number of elements.
    """
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= limit:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (), 0, inner
        return
    axis -= 1
    rows = max(limit // max(inner, 1), 1)
    start = 0
    for outer in itertools.product(*(range(length) for length in shape[:axis])):
        for first in range(0, shape[axis], rows):
            taken = min(rows, shape[axis] - first)
            yield (*outer, slice(first, first + taken)), start, taken * inner
            start += taken * inner


def is_row_major(span: Span) -> bool:
    """Whether memory order and row-major order are the same."""
    spec = span.spec
    pairs = zip(spec.shape, spec.stride, contiguous_stride(spec.shape), strict=True)
    return not spec.numel or all(length == 1 or stride == usual for length, stride, usual in pairs)


class HostStream:
    """A flat stream as host bytes: its own memory on the CPU, pieces copied through pinned memory from elsewhere."""

    def __init__(self, held: Stream) -> None:
        self.held, self.stream = held, held.buffer
        stream = held.buffer
        self.dtype = stream.dtype
        self.itemsize = stream.element_size()
        self._first = 0
        self._bytes = host_bytes(stream) if stream.device.type == "cpu" else memoryview(b"")

    def pieces(self, span: Span, numel: int, row_major: bool) -> Iterable[memoryview]:
        """A variable's bytes in row-major order, in pieces that stay valid.

        Args:
            numel, row_major: The span's; asked for because one span is read in several streams.
        """
        if row_major and numel * self.itemsize <= PIECE:
            start = span.offset - self.held.base
            return (self._run(start, start + numel),)
        return self._runs(span, numel) if row_major else self._transposed(span)

    def _runs(self, span: Span, numel: int) -> Iterator[memoryview]:
        limit, start = PIECE // self.itemsize, span.offset - self.held.base
        for first in range(0, numel, limit):
            yield self._run(start + first, start + min(first + limit, numel))

    def _transposed(self, span: Span) -> Iterator[memoryview]:
        view = self.held.view(span)
        for index, _, _ in blocks(span.spec.shape, PIECE // self.itemsize):
            yield host_bytes(view[index])

    def _run(self, start: int, stop: int) -> memoryview:
        a, b = start * self.itemsize, stop * self.itemsize
        if not self._first <= a <= b <= self._first + len(self._bytes):
            # One copy for many small variables. A new buffer each time: callers may still hold the last one.
            upto = max(stop, min(start + PIECE // self.itemsize, len(self.stream)))
            host = torch.empty(upto - start, dtype=self.stream.dtype, pin_memory=self.stream.is_cuda)
            self._bytes, self._first = host_bytes(host.copy_(self.stream[start:upto])), a
        return self._bytes[a - self._first : b - self._first]


def host_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order; its own memory where it lies so on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def copy_in(target: Tensor, read: Callable[[int, int], Tensor], itemsize: int) -> None:
    """Copies row-major elements into a tensor of any memory order, dtype and device, piece by piece.

    Args:
        target: [shape], dense.
        read: From (first element, count) to a 1-D tensor of them.
        itemsize: Bytes of an element where `read` finds it.
    """
    for index, start, count in blocks(tuple(target.shape), PIECE // itemsize):
        if count:
            block = target[index]
            block.copy_(read(start, count).view(block.shape))
