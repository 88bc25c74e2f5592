"""What a checkpoint is read from: a safetensors file, several with an index, a torch file, or a stream of either.

Files are mapped a window at a time, so that one larger than memory (or than the address space) is read in bounded
pieces. Writable private mappings, because torch wants writable memory; nothing is ever written.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedFileError
from .blocks import PIECE
from .description import Description, read_description
from .header import MAX_HEADER, Entry, listing, parse_json, read_header
from .torch_file import TORCH_SUFFIXES, TorchFile, is_torch_file

WINDOW = 1 << 26
"""Bytes of a file that are mapped at a time."""

INDEX = ".index.json"
# In the order of Hugging Face's loaders.
NAMES_IN_A_FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")

Target = str | os.PathLike[str] | IO[bytes]


class Bytes(Protocol):
    """Random access to bytes that are not all in memory."""

    size: int

    def read(self, start: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]: ...

    def rewind(self) -> None: ...

    def close(self) -> None: ...


class MappedFile:
    """An open file; what is read stays valid for as long as it is held."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self._start = 0
        self._window: np.ndarray[Any, np.dtype[np.uint8]] = np.empty(0, np.uint8)

    def read(self, start: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        if start + count > self.size:
            raise DamagedFileError(f"{self.file.name} ends at byte {self.size:,}; byte {start + count:,} was expected")
        if not self._start <= start <= start + count <= self._start + len(self._window):
            self._start = start - start % mmap.ALLOCATIONGRANULARITY
            length = min(max(WINDOW, start + count - self._start), self.size - self._start)
            mapped = mmap.mmap(self.file.fileno(), length, access=mmap.ACCESS_COPY, offset=self._start)
            self._window = np.frombuffer(mapped, np.uint8)
        return self._window[start - self._start : start - self._start + count]

    def rewind(self) -> None:
        self.file.seek(0)

    def close(self) -> None:
        self._window = np.empty(0, np.uint8)
        self.file.close()


class SeekableStream:
    """A stream from where it stands to its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.origin = stream.tell()
        self.size = stream.seek(0, os.SEEK_END) - self.origin

    def read(self, start: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        self.stream.seek(self.origin + start)
        found = self.stream.read(count)
        if len(found) != count:
            raise DamagedFileError(f"the stream ended: {count:,} bytes were expected at {start:,}, {len(found):,} came")
        return np.frombuffer(bytearray(found), np.uint8)

    def rewind(self) -> None:
        self.stream.seek(self.origin)

    def close(self) -> None:
        """The stream is the caller's; it stands at its end."""
        self.stream.seek(self.origin + self.size)


class Source(Protocol):
    """Tensors by name, without reading them."""

    name: str
    entries: Mapping[str, Entry]
    description: Description | None

    def read(self, key: str, start: int, count: int) -> Tensor: ...

    def crc32(self, key: str) -> str | None: ...

    def close(self) -> None: ...


class SafetensorsFile:
    """One safetensors file, header checked."""

    def __init__(self, data: Bytes, name: str) -> None:
        self.name = name
        self._data = data
        self.header = read_header(data.read, data.size, name)
        self.entries: Mapping[str, Entry] = self.header.entries
        self.description = read_description(self.header, name)

    def read(self, key: str, start: int, count: int) -> Tensor:
        """Elements of a tensor in row-major order, [count], on the CPU."""
        entry = self.entries[key]
        size = entry.dtype.itemsize
        raw = self._data.read(self.header.data_start + entry.start + start * size, count * size)
        if raw.ctypes.data % size:
            raw = raw.copy()  # files of others need not align tensors
        return torch.from_numpy(raw).view(entry.dtype)

    def crc32(self, key: str) -> str | None:
        return self.description.crc32[key] if self.description is not None else None

    def close(self) -> None:
        self._data.close()


class Shards:
    """Several files behind an index."""

    def __init__(self, files: Mapping[str, Source], weight_map: Mapping[str, str], name: str, save: Any) -> None:
        self.name = name
        self.files = files
        self.weight_map = weight_map
        held = {key: file for file, source in files.items() for key in source.entries}
        if held != dict(weight_map):
            wrong = sorted(set(held.items()) ^ set(weight_map.items()))
            raise DamagedFileError(f"{name} and its files disagree on {listing(key for key, _ in wrong)}")
        self.entries: Mapping[str, Entry] = {k: e for source in files.values() for k, e in source.entries.items()}
        described = [s.description for s in files.values() if s.description is not None]
        if any(d.save != save for d in described) or (described and len(described) != len(files)):
            raise DamagedFileError(f"{name} names files of another save; one of them was replaced")
        self.description = next((d for d in described if d.part[0] == 1), None)

    def _source(self, key: str) -> Source:
        return self.files[self.weight_map[key]]

    def read(self, key: str, start: int, count: int) -> Tensor:
        return self._source(key).read(key, start, count)

    def crc32(self, key: str) -> str | None:
        return self._source(key).crc32(key)

    def close(self) -> None:
        for source in self.files.values():
            source.close()


@contextmanager
def opened(target: Target) -> Iterator[Source]:
    """Opens a checkpoint: a file, an index, a folder, or a readable binary stream.

    Raises:
        CheckpointError: nothing is there.
        DamagedFileError: what is there is no sound checkpoint.
    """
    source = _open_path(Path(target)) if isinstance(target, (str, os.PathLike)) else _open_stream(target)
    try:
        yield source
    finally:
        source.close()


def _open_stream(stream: IO[bytes]) -> Source:
    if not stream.seekable():
        spooled = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the source
        while piece := stream.read(PIECE):
            spooled.write(piece)
        spooled.seek(0)
        return _open_bytes(MappedFile(spooled), "the stream", spooled)
    return _open_bytes(SeekableStream(stream), "the stream", stream)


def _open_bytes(data: Bytes, name: str, file: IO[bytes], path: Path | None = None) -> Source:
    try:
        start = bytes(data.read(0, min(16, data.size)))
        if is_torch_file(start, "" if path is None else path.suffix):
            data.rewind()
            return TorchFile(file, name, None if path is None else str(path))
        return SafetensorsFile(data, name)
    except BaseException:
        data.close()
        raise


def _open_path(path: Path) -> Source:
    tries = 10
    for left in reversed(range(tries)):
        found = find(path)
        try:
            if found.name.endswith(INDEX):
                return _open_index(found)
            file = found.open("rb")
            return _open_bytes(MappedFile(file), str(found), file, found)
        except FileNotFoundError:
            # Another process replaced the checkpoint between our looks at it; what it wrote is whole.
            if not left:
                raise DamagedFileError(f"{found} names files that are not there; a shard is missing") from None
    raise AssertionError("unreachable")


def find(path: Path) -> Path:
    """The file to open for a path: itself, its index, or the model of a folder.

    Raises:
        CheckpointError: there is none.
    """
    choices = [path / name for name in NAMES_IN_A_FOLDER] if path.is_dir() else [path, Path(f"{path}{INDEX}")]
    for choice in choices:
        if choice.is_file():
            return choice
    raise CheckpointError(f"no checkpoint at {path}: none of {listing(choice.name for choice in choices)} is there")


def _open_index(path: Path) -> Source:
    with path.open("rb") as file:
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise DamagedFileError(f"{path} is larger than {MAX_HEADER:,} bytes and is no index")
    content = parse_json(text, str(path))
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedFileError(f"{path} has no weight_map from tensor names to file names")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if not name or name in (".", "..") or set(name) & {"/", "\\", "\0", ":"}]
    if outside:
        raise DamagedFileError(f"{path} names files outside of its folder: {listing(outside)}")
    metadata = content.get("metadata")
    save = metadata.get("flatvars.save") if isinstance(metadata, dict) else None
    files: dict[str, Source] = {}
    try:
        for name in names:
            file = (path.parent / name).open("rb")
            files[name] = _open_bytes(MappedFile(file), str(path.parent / name), file, path.parent / name)
        return Shards(files, weight_map, str(path), save)
    except BaseException:
        for source in files.values():
            source.close()
        raise


def verify(source: Source, keys: Iterable[str], tick: Callable[[int], None]) -> list[str]:
    """Compares tensors with their checksums; files of other programs have none.

    Returns:
        Which tensors are damaged, in words.
    """
    problems = []
    for key in keys:
        expected = source.crc32(key)
        if expected is None:
            continue
        crc = 0
        for piece in pieces(source, key):
            crc = zlib.crc32(piece.view(torch.uint8).numpy().data, crc)
            tick(piece.nbytes)
        if f"{crc:08x}" != expected:
            problems.append(f"tensor {key!r} of {source.name} is damaged: its checksum is {crc:08x}, not {expected}")
    return problems


def pieces(source: Source, key: str) -> Iterator[Tensor]:
    """A tensor's elements in bounded pieces, [at most PIECE bytes]."""
    entry = source.entries[key]
    limit = PIECE // entry.dtype.itemsize
    for start in range(0, entry.numel, limit):
        yield source.read(key, start, min(limit, entry.numel - start))


__all__ = ["TORCH_SUFFIXES", "Source", "Target", "find", "opened", "pieces", "verify"]
