"""What files hold, and the text of their headers that follows from it: derived once, while names and state stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from json.encoder import encode_basestring_ascii as quote
from typing import NamedTuple

import torch

from ..errors import CheckpointError
from .blocks import HostStream, host_bytes
from .description import digest_rows, metadata_of
from .header import MAX_HEADER, Entry, encode_entries, encode_header
from .image import Image
from .records import Record


class Row(NamedTuple):
    """A tensor of a file: a variable's part of a plane; or a tensor of its own, which has no record."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    plane: int
    record: Record | None


class Table:
    """The tensors of one file, in its order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.nbytes = sum(row.nbytes for row in rows)

    @cached_property
    def _texts(self) -> tuple[str, bytes, str]:
        """Tensors as JSON; what of them the header's checksum is of; JSON of their checksums, to be filled in."""
        entries, start = {}, 0
        for row in self.rows:
            entries[row.key] = Entry(row.dtype, row.shape, start, start + row.nbytes)
            start += row.nbytes
        sums = ",".join([quote(row.key).replace("%", "%%") + ':"%08x"' for row in self.rows])
        return encode_entries(entries), digest_rows(entries), sums

    def header(self, description: str, crcs: Sequence[int] | None = None) -> bytes:
        """The bytes before the data; of the same length for all checksums.

        Args:
            description: What `Description.encode` returned.
            crcs: Checksum of each tensor.

        Raises:
            CheckpointError: more names than a header may hold.
        """
        entries, digest, sums = self._texts
        header = encode_header(entries, metadata_of(description, digest, sums % tuple(crcs or [0] * len(self.rows))))
        if len(header) - 8 > MAX_HEADER:
            raise CheckpointError(
                f"{len(self.rows)} tensors need a header of {len(header):,} bytes, and {MAX_HEADER:,} are allowed; "
                "pass a smaller shard_size"
            )
        return header


def tables_of(image: Image, limit: int) -> list[Table]:
    """The files of an image: wide dtypes first, so that each tensor is aligned to its own size.

    Args:
        limit: Bytes of a file; a tensor that is larger has one of its own.

    Raises:
        CheckpointError: two tensors have one name, as when a variable is called "exp_avg/...".
    """
    by_dtype = image.catalog.by_dtype
    chosen = [plane.choose(by_dtype.get(plane.region, []), plane.held) for plane in image.planes]
    labels = [(plane.label, plane.held.buffer.dtype) for plane in image.planes]
    loose = [Row(key, t.dtype, tuple(t.shape), t.nbytes, 0, None) for key, t in image.loose.items()]
    made_of = (limit, labels, chosen, loose)
    kept = image.catalog.kept
    if kept[0] != made_of:
        # One assignment: a snapshot may be saved by another thread meanwhile.
        kept = made_of, [Table(rows) for rows in _split(_rows(labels, chosen, loose), limit)]
        image.catalog.kept = kept
    tables: list[Table] = kept[1]
    return tables


def _rows(labels: list[tuple[str, torch.dtype]], chosen: list[list[Record]], loose: list[Row]) -> list[Row]:
    rows = []
    for number, ((label, dtype), records) in enumerate(zip(labels, chosen, strict=True)):
        prefix, itemsize = label and f"{label}/", dtype.itemsize
        rows += [Row(prefix + r.names[0], dtype, r.span.spec.shape, r.numel * itemsize, number, r) for r in records]
    rows += loose
    seen: set[str] = set()
    for row in rows:
        if row.key in seen:
            raise CheckpointError(
                f"two tensors would be called {row.key!r} in the file; rename the variable of that name"
            )
        seen.add(row.key)
    return sorted(rows, key=lambda row: -row.dtype.itemsize)


def _split(rows: Sequence[Row], limit: int) -> list[list[Row]]:
    parts: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        if parts[-1] and size + row.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += row.nbytes
    return parts


class Bytes:
    """The bytes of an image's tensors, in row-major order."""

    def __init__(self, image: Image) -> None:
        self._streams = [HostStream(plane.held) for plane in image.planes]
        self._loose = image.loose

    def of(self, row: Row) -> Iterable[memoryview]:
        """In pieces that stay valid."""
        record = row.record
        if record is not None:
            return self._streams[row.plane].pieces(record.span, record.numel, record.row_major)
        return (host_bytes(self._loose[row.key]),) if row.nbytes else ()
