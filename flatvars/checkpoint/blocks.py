"""Tensors in bounded pieces, in row-major order: what a file holds, whatever the order of a variable in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

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
    """A flat stream as host bytes: its own memory on the CPU, pieces copied through pinned memory from elsewhere.

    Args:
        part: Which buffer of a stream of a format.
    """

    def __init__(self, stream: Stream, part: int = 0) -> None:
        part_of, self._buffer = stream.named()[part]
        self._base = stream.unit if part_of.units else stream.base // part_of.each
        self._part = part_of
        self._itemsize = self._buffer.element_size()
        self._first = 0
        self._bytes = host_bytes(self._buffer) if self._buffer.device.type == "cpu" else memoryview(b"")

    def pieces(self, span: Span, numel: int, row_major: bool) -> Iterable[memoryview]:
        """A variable's bytes in row-major order, in pieces that stay valid.

        Args:
            numel, row_major: The span's; asked for because one span is read in several streams.
        """
        limit = PIECE // self._itemsize
        part = self._part
        start = (span.unit if part.units else span.offset // part.each) - self._base
        if part.each > 1:
            numel = part.items(numel)
        elif not row_major:
            view = self._buffer.as_strided(span.spec.shape, span.spec.stride, start)
            return (host_bytes(view[index]) for index, _, _ in blocks(span.spec.shape, limit))
        if numel <= limit:
            return (self._run(start, start + numel),)
        stop = start + numel
        return (self._run(first, min(first + limit, stop)) for first in range(start, stop, limit))

    def _run(self, start: int, stop: int) -> memoryview:
        a, b = start * self._itemsize, stop * self._itemsize
        if not self._first <= a <= b <= self._first + len(self._bytes):
            # One copy for many small variables. A new buffer each time: callers may still hold the last one.
            buffer = self._buffer
            upto = max(stop, min(start + PIECE // self._itemsize, len(buffer)))
            host = torch.empty(upto - start, dtype=buffer.dtype, pin_memory=buffer.is_cuda)
            self._bytes, self._first = host_bytes(host.copy_(buffer[start:upto])), a
        return self._bytes[a - self._first : b - self._first]


class HostNumbers:
    """The numbers of a stream of a format as host bytes, decoded piece by piece."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def pieces(self, span: Span, numel: int, row_major: bool) -> Iterable[memoryview]:
        """See `HostStream.pieces`."""
        stream, limit = self._stream, PIECE // 4
        if not row_major or not stream.is_encoded(span):
            view = stream.read(span)
            return (host_bytes(view[index]) for index, _, _ in blocks(span.spec.shape, limit))
        runs = ((first, min(first + limit, numel)) for first in range(0, max(numel, 1), limit))
        return (host_bytes(stream.decoded(span, first, stop)) for first, stop in runs)


def host_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order; its own memory where it lies so on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
