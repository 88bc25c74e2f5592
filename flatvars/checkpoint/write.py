"""Writing: into one file, into shards with an index, or into a stream.

Bytes go straight from the flat streams to the system, checksums are taken beside the writing. The header is written
last: it has one length whatever the checksums are.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import IO

import torch

from ..errors import CheckpointError
from .blocks import PIECE, host_bytes
from .contents import Table
from .description import Description
from .files import publication, raise_for_room, start_writeback, write_views
from .image import Image, Pieces
from .opening import opened
from .progress import Progress

SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LARGE_PIECES = 256
"""Pieces of a batch above which they are small."""


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
    if unit not in SIZE_UNITS or not number > 0:
        raise ValueError(f"shard_size={size!r} is no size; give bytes, or a string such as '5GB' or '512MiB'")
    return int(number * SIZE_UNITS[unit])


def write_path(image: Image, target: Path, shard_size: int, progress: Progress) -> None:
    """Writes under a name: the old content or all of the new one is there, at any moment.

    Raises:
        CheckpointError: no room on the disk, no such folder, names that collide.
    """
    tables = image.tables(shard_size)
    description, pieces = image.describe(), image.reader()
    progress.start(sum(table.nbytes for table in tables))
    with publication(target) as save:
        description.save = save.token
        weight_map: dict[str, str] = {}
        for number, table in enumerate(tables, start=1):
            final = save.shard(number, len(tables)) if len(tables) > 1 else save.target
            weight_map.update({row.key: final.name for row in table.rows} if len(tables) > 1 else {})
            text = _described(description, image.catalog.text, number, len(tables))
            _write_file(save.draft(final).descriptor, table, text, pieces, progress)
        if len(tables) > 1:
            total = sum(table.nbytes for table in tables)
            index = {"metadata": {"total_size": total, "flatvars.save": save.token}, "weight_map": weight_map}
            write_views(save.draft(save.index).descriptor, [memoryview(json.dumps(index, indent=2).encode())])


def _described(whole: Description, variables: str, number: int, parts: int) -> str:
    """The first file describes the checkpoint; the others say which they are."""
    if number == 1:
        return replace(whole, part=[1, parts]).encode(variables)
    return Description(save=whole.save, part=[number, parts], streams=whole.streams).encode("{}")


def _write_file(descriptor: int, table: Table, description: str, pieces: Pieces, progress: Progress) -> None:
    write_views(descriptor, [memoryview(table.header(description))])
    crcs = [0] * len(table.rows)

    def add(batch: list[tuple[int, memoryview]]) -> None:
        for i, view in batch:
            crcs[i] = zlib.crc32(view, crcs[i])

    with ThreadPoolExecutor(1) as checksums:
        for batch in _batches(table, pieces):
            # Sums of small pieces keep Python's lock: in another thread they would only get in the way.
            aside = len(batch) <= LARGE_PIECES
            pending = _begin(checksums, add, batch) if aside else None
            write_views(descriptor, [view for _, view in batch])
            size = sum([len(view) for _, view in batch])
            start_writeback(descriptor, size)
            if pending is not None:
                pending.result()
            else:
                add(batch)
            progress.advance(size)
    header = table.header(description, crcs)
    os.lseek(descriptor, 0, os.SEEK_SET)
    write_views(descriptor, [memoryview(header)])
    _check_written(descriptor, header, table.nbytes)


def _check_written(descriptor: int, header: bytes, nbytes: int) -> None:
    """Reads a header back before its file takes the place of another one. The table has parsed it once.

    Raises:
        CheckpointError: the system gave back something else than it was given.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    there, size = os.read(descriptor, len(header)), os.fstat(descriptor).st_size
    if there != header or size != len(header) + nbytes:
        raise CheckpointError(
            f"the file system did not keep what was written: of {len(header) + nbytes:,} bytes there are {size:,}, and "
            f"the header reads {'the same' if there == header else 'otherwise'}; what was there before is untouched"
        )


def _begin(executor: ThreadPoolExecutor, job: Callable[..., None], batch: object) -> Future[None] | None:
    """Starts a job beside; None once the interpreter is ending and starts no more: a save that was begun goes on."""
    try:
        return executor.submit(job, batch)
    except RuntimeError:
        return None


def _batches(table: Table, pieces: Pieces) -> Iterator[list[tuple[int, memoryview]]]:
    """Pieces of tensors, as many at a time as make up a piece of the file."""
    batch: list[tuple[int, memoryview]] = []
    size = 0
    for i, row in enumerate(table.rows):
        for view in pieces(row):
            batch.append((i, view))
            size += len(view)
            if size >= PIECE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def write_stream(image: Image, stream: IO[bytes], progress: Progress) -> None:
    """Writes one file's bytes to a stream, which need not seek: checksums are taken first."""
    (table,), pieces = image.tables(2**63), image.reader()
    progress.start(table.nbytes)
    crcs = [reduce(lambda crc, view: zlib.crc32(view, crc), pieces(row), 0) for row in table.rows]
    try:
        stream.write(table.header(image.describe().encode(image.catalog.text), crcs))
        for row in table.rows:
            for view in pieces(row):
                written = stream.write(view)
                if written is not None and written != len(view):
                    raise CheckpointError(f"the stream took {written} of {len(view)} bytes; pass a buffered one")
                progress.advance(len(view))
        stream.flush()
    except OSError as error:
        raise_for_room(error, "to the stream")
        raise


def write_torch_file(image: Image, target: Path) -> None:
    """Writes the values as a state dict for torch.load, whole or not at all; tied names share their tensor.

    Raises:
        CheckpointError: no room on the disk.
    """
    (table,), pieces = image.tables(2**63), image.reader()
    rows = [(row.record, row) for row in table.rows if row.record is not None and row.key == row.record.name]
    state: dict[str, torch.Tensor] = {}
    for record, row in sorted(rows, key=lambda pair: pair[0].id):
        # Of its own: torch.save writes the whole storage of a view, which is the store.
        value = torch.empty(row.shape, dtype=row.dtype)
        raw, start = host_bytes(value), 0
        for view in pieces(row):
            raw[start : start + len(view)] = view
            start += len(view)
        state.update(dict.fromkeys(record.names, value))
    with publication(target) as save:
        draft = save.draft(save.target)
        with open(draft.descriptor, "wb", closefd=False) as file:
            torch.save(state, file)
        with opened(draft.path) as source:
            shapes = {key: info.shape for key, info in source.entries.items()}
            if shapes != {key: tuple(value.shape) for key, value in state.items()}:
                raise CheckpointError(f"{target} reads back as something else; what was there before is untouched")
