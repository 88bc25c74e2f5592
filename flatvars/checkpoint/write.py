"""Writing an image: into one file, into shards with an index, or into a stream.

Bytes go straight from the flat streams to the system, checksums are taken beside the writing. The header is written
last: it has one length whatever the checksums are.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from ..errors import CheckpointError
from .blocks import PIECE
from .description import Description, digest_rows, metadata_of
from .files import Publication, publication, raise_for_room, write_views
from .header import MAX_HEADER, Entry, encode_entries, encode_header
from .image import Image, Item, items_of
from .progress import Progress

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LARGE_PIECES = 256
"""Pieces of a batch above which they are small."""


class Part:
    """What one file holds."""

    def __init__(self, items: list[Item], description: Description) -> None:
        self.items = items
        entries, start = {}, 0
        for item in items:
            entries[item.key] = Entry(item.dtype, item.shape, start, start + item.nbytes)
            start += item.nbytes
        self._entries = encode_entries(entries)
        self._rows = digest_rows(entries)
        self._description = description.encode()

    def header(self, crcs: Sequence[int] | None = None) -> bytes:
        """The bytes before the data; of the same length for all checksums.

        Raises:
            CheckpointError: more names than a header may hold.
        """
        sums = {item.key: crc for item, crc in zip(self.items, crcs or [0] * len(self.items), strict=True)}
        header = encode_header(self._entries, metadata_of(self._description, self._rows, sums))
        if len(header) - 8 > MAX_HEADER:
            raise CheckpointError(
                f"{len(self.items)} tensors need a header of {len(header):,} bytes, and {MAX_HEADER:,} are allowed; "
                "pass a smaller shard_size"
            )
        return header


def bytes_of_size(size: int | str) -> int:
    """Bytes of "5GB", "200MiB" or a number.

    Raises:
        ValueError: something else.
    """
    if isinstance(size, int) and size > 0:
        return size
    text = str(size).strip().upper()
    digits = text.rstrip("BIKMGT")
    unit = text[len(digits) :] or "B"
    try:
        number = float(digits)
    except ValueError:
        number = 0.0
    if unit not in UNITS or not number > 0:
        raise ValueError(f"shard_size={size!r} is no size; give bytes, or a string such as '5GB' or '512MiB'")
    return int(number * UNITS[unit])


def split(items: Sequence[Item], limit: int) -> list[list[Item]]:
    """Items in files of at most `limit` bytes; a tensor that is larger has a file of its own."""
    parts: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if parts[-1] and size + item.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += item.nbytes
    return parts


def write_path(image: Image, target: Path, shard_size: int, progress: Progress) -> None:
    """Writes an image under a name: the old content or all of the new one is there, at any moment.

    Raises:
        CheckpointError: no room on the disk, no such folder, names that collide.
    """
    items = items_of(image)
    description = image.describe()
    groups = split(items, shard_size)
    progress.start(sum(item.nbytes for item in items))
    with publication(target) as save:
        description.save = save.token
        if len(groups) == 1:
            _write_file(save, save.target, Part(items, description), progress)
            return
        weight_map: dict[str, str] = {}
        for number, group in enumerate(groups, start=1):
            final = save.shard(number, len(groups))
            weight_map.update({item.key: final.name for item in group})
            part = Part(group, _described(description, number, len(groups)))
            _write_file(save, final, part, progress)
        index = {
            "metadata": {"total_size": sum(item.nbytes for item in items), "flatvars.save": save.token},
            "weight_map": weight_map,
        }
        draft = save.draft(save.index)
        write_views(draft.descriptor, [memoryview(json.dumps(index, indent=2).encode())])


def _described(whole: Description, number: int, parts: int) -> Description:
    """The first file describes the checkpoint; the others say which they are."""
    if number == 1:
        return Description(**{**whole.__dict__, "part": [1, parts]})
    return Description(save=whole.save, part=[number, parts], streams=whole.streams)


def _write_file(save: Publication, final: Path, part: Part, progress: Progress) -> None:
    draft = save.draft(final)
    write_views(draft.descriptor, [memoryview(part.header())])
    crcs = [0] * len(part.items)

    def add(batch: list[tuple[int, memoryview]]) -> None:
        for i, view in batch:
            crcs[i] = zlib.crc32(view, crcs[i])

    with ThreadPoolExecutor(1) as checksums:
        for batch in _batches(part.items):
            # Sums of small pieces keep Python's lock: in another thread they would only get in the way.
            aside = len(batch) <= LARGE_PIECES
            pending = checksums.submit(add, batch) if aside else None
            write_views(draft.descriptor, [view for _, view in batch])
            if pending is not None:
                pending.result()
            else:
                add(batch)
            progress.advance(sum(len(view) for _, view in batch))
    os.lseek(draft.descriptor, 0, os.SEEK_SET)
    write_views(draft.descriptor, [memoryview(part.header(crcs))])


def _batches(items: Sequence[Item]) -> Iterator[list[tuple[int, memoryview]]]:
    """Pieces of items, as many at a time as make up a piece of the file."""
    batch: list[tuple[int, memoryview]] = []
    size = 0
    for i, item in enumerate(items):
        for view in item.read():
            batch.append((i, view))
            size += len(view)
            if size >= PIECE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def write_stream(image: Image, stream: IO[bytes], progress: Progress) -> None:
    """Writes an image as one file's bytes to a stream, which need not seek: checksums are taken first."""
    part = Part(items_of(image), image.describe())
    progress.start(sum(item.nbytes for item in part.items))
    crcs = []
    for item in part.items:
        crc = 0
        for view in item.read():
            crc = zlib.crc32(view, crc)
        crcs.append(crc)
    try:
        _send(part, crcs, stream, progress)
        stream.flush()
    except OSError as error:
        raise_for_room(error, "to the stream")
        raise


def _send(part: Part, crcs: Sequence[int], stream: IO[bytes], progress: Progress) -> None:
    stream.write(part.header(crcs))
    for item in part.items:
        for view in item.read():
            written = stream.write(view)
            if written is not None and written != len(view):
                raise CheckpointError(f"the stream took {written} of {len(view)} bytes; pass a buffered one")
            progress.advance(len(view))
