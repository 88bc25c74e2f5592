"""What a file holds, and the text of its header that follows from it: derived once, while names and state stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from json.encoder import encode_basestring_ascii as quote
from typing import NamedTuple

import torch

from ..errors import CheckpointError, DamagedFileError
from .description import digest_rows, metadata_of
from .header import MAX_HEADER, METADATA, TensorInfo, encode_entries, encode_header, read_header
from .records import Record

DECODED = -1
"""Stands for the numbers of a stream of a format, in the place of one of its buffers."""


class Row(NamedTuple):
    """A tensor of a file: a variable's part of a plane; or a tensor of its own, which has no record.

    Of a stream of a format, `part` says which of its buffers it is of, or that it is the numbers that they stand for.
    """

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    plane: int
    record: Record | None
    part: int = 0


class Table:
    """The tensors of one file, in its order."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.nbytes = sum(row.nbytes for row in rows)
        self._read_back = False

    def _entries(self) -> dict[str, TensorInfo]:
        entries, start = {}, 0
        for row in self.rows:
            entries[row.key] = TensorInfo(row.dtype, row.shape, start, start + row.nbytes)
            start += row.nbytes
        return entries

    @cached_property
    def _texts(self) -> tuple[str, bytes, str]:
        """Tensors as JSON; what of them the header's checksum is of; JSON of their checksums, to be filled in."""
        entries = self._entries()
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
        if not self._read_back:
            self._check(header)
            self._read_back = True
        return header

    def _check(self, header: bytes) -> None:
        """Reads a header as a load will. Once: what follows from the same rows differs in checksums alone.

        Raises:
            CheckpointError: it would say something else.
        """
        try:
            found = read_header(lambda start, count: header[start : start + count], len(header) + self.nbytes, "it")
        except DamagedFileError as error:
            raise CheckpointError(f"no file can hold these {len(self.rows)} tensors, for in reading {error}") from error
        wrong = dict(set(self._entries().items()) ^ set(found.entries.items()))
        if wrong:
            raise CheckpointError(f"no file can hold {next(iter(wrong))!r} as it is; rename the variable")


def tables_of(rows: Iterable[Row], limit: int) -> list[Table]:
    """Rows in files: wide dtypes first, so that each tensor is aligned to its own size.

    Raises:
        CheckpointError: two tensors have one name, as when a variable is called "exp_avg/..."; or one has the header's,
            or one that is no text.
    """
    rows = list(rows)
    _check_texts([row.key for row in rows])
    parts: list[list[Row]] = [[]]
    size = 0
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: -row.dtype.itemsize):
        if row.key == METADATA:
            raise CheckpointError(f"{METADATA!r} is the format's own name for something else; rename the variable")
        if row.key in seen:
            raise CheckpointError(
                f"two tensors would be called {row.key!r} in the file; rename the variable of that name"
            )
        seen.add(row.key)
        if parts[-1] and size + row.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += row.nbytes
    return [Table(part) for part in parts]


def _check_texts(keys: Sequence[str]) -> None:
    try:
        "".join(keys).encode()
    except UnicodeEncodeError as error:
        wrong = next(key for key in keys if error.object[error.start] in key)
        raise CheckpointError(f"the name {wrong!r} is no Unicode text, as names in files are; rename it") from None
