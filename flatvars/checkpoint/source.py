"""Sources: tensors by name, not read yet. A safetensors file, several behind an index, or tensors in memory."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DamagedFileError
from .blocks import PIECE, blocks
from .description import Description, read_description
from .header import TensorInfo, Unread, listing, read_header

READ_AHEAD = 1 << 18
"""Bytes that a read takes at least: tensors of a few bytes, one behind the other, cost no call to the system each."""

Raw = np.ndarray[Any, np.dtype[np.uint8]]


class Reader:
    """Random access to a file or a seekable stream, from where it stands to its end.

    Read, not mapped: a mapped file that someone truncates ends the process.

    Args:
        owned: Whether it is closed with the source. A caller's stream is left at its end.
    """

    def __init__(self, stream: Any, owned: bool) -> None:
        self.stream = stream
        self._owned = owned
        self._origin = stream.tell()
        self.size = stream.seek(0, os.SEEK_END) - self._origin
        self._first = 0
        self._ahead: Raw = np.empty(0, np.uint8)

    def read(self, start: int, count: int) -> Raw:
        """Bytes that stay valid for as long as they are held."""
        if not self._first <= start <= start + count <= self._first + len(self._ahead):
            self._first, self._ahead = start, self._fetch(start, max(count, min(READ_AHEAD, self.size - start)))
        return self._ahead[start - self._first : start - self._first + count]

    def _fetch(self, start: int, count: int) -> Raw:
        data = np.empty(count if start + count <= self.size else 0, np.uint8)
        rest = memoryview(data.data)
        self.stream.seek(self._origin + start)
        while len(rest) and (taken := self.stream.readinto(rest)):
            rest = rest[taken:]
        if len(rest) or len(data) != count:
            raise DamagedFileError(f"the file ends early: {count:,} bytes were expected at byte {start:,}")
        return data

    def rewind(self) -> IO[bytes]:
        """The stream, where it stood."""
        self.stream.seek(self._origin)
        return self.stream  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._owned:
            self.stream.close()
        else:
            self.stream.seek(self._origin + self.size)


class Source(ABC):
    """What is loaded from.

    Attributes:
        name: For errors.
        entries: Tensors by name, in the order of their bytes.
        unread: Tensors of dtypes that are not read, by name; their bytes can be, as uint8.
        description: What flatvars wrote beside them; None in files of other programs.
    """

    name: str
    entries: Mapping[str, TensorInfo]
    unread: Mapping[str, Unread]
    description: Description | None = None

    @abstractmethod
    def read(self, key: str, start: int, count: int) -> Tensor:
        """Elements of a tensor in row-major order, [count], on the CPU."""

    def info(self, key: str) -> TensorInfo:
        """What `read` reads of a tensor."""
        return self.entries[key] if key in self.entries else self.unread[key].as_bytes

    @abstractmethod
    def close(self) -> None:
        """Gives back what it holds."""

    def crc32(self, key: str) -> str | None:
        """Checksum of a tensor's bytes, where there is one."""
        return None

    @cached_property
    def by_stream(self) -> dict[str, dict[str, str]]:
        """The tensors' keys by stream ("" is that of values) and by name of the variable, or of what else it is."""
        found: dict[str, dict[str, str]] = {"": {}}
        for key in self.entries:
            stream, name = ("", key) if self.description is None else self.description.name_of(key)
            found.setdefault(stream, {})[name] = key
        return found

    def values(self) -> dict[str, TensorInfo]:
        """The tensors that are values of variables."""
        return {key: self.entries[key] for key in self.by_stream[""].values()}

    def pieces(self, key: str) -> Iterator[Tensor]:
        """A tensor's elements in bounded pieces, [at most PIECE bytes]."""
        entry = self.entries[key]
        limit = PIECE // entry.dtype.itemsize
        for start in range(0, entry.numel, limit):
            yield self.read(key, start, min(limit, entry.numel - start))

    def copy_to(self, target: Tensor, key: str, first: int = 0) -> None:
        """Copies row-major elements, from the first on, into a dense tensor of any memory order, dtype and device."""
        for index, start, count in blocks(tuple(target.shape), PIECE // self.entries[key].dtype.itemsize):
            if count:
                block = target[index]
                block.copy_(self.read(key, first + start, count).view(block.shape))

    def whole(self, key: str) -> Tensor:
        """A tensor, [its shape], on the CPU, in memory of its own."""
        entry = self.entries[key]
        result = torch.empty(entry.shape, dtype=entry.dtype)
        self.copy_to(result, key)
        return result

    def damaged(self, keys: Iterable[str], tick: Callable[[int], None] = lambda count: None) -> list[str]:
        """Which tensors do not fit their checksums, in words; files of other programs have none.

        Args:
            tick: Is told the bytes that were read.
        """
        problems = []
        for key in keys:
            expected = self.crc32(key)
            if expected is None:
                continue
            crc = 0
            for piece in self.pieces(key):
                crc = zlib.crc32(piece.view(torch.uint8).numpy().data, crc)
                tick(piece.nbytes)
            if f"{crc:08x}" != expected:
                problems.append(f"tensor {key!r} of {self.name} is damaged: its checksum is {crc:08x}, not {expected}")
        return problems


class SafetensorsFile(Source):
    """One safetensors file, header checked."""

    def __init__(self, reader: Reader, name: str) -> None:
        self.name = name
        self._reader = reader
        self.header = read_header(reader.read, reader.size, name)
        self.entries, self.unread = self.header.entries, self.header.unread
        self.description = read_description(self.header, name)

    def read(self, key: str, start: int, count: int) -> Tensor:
        entry = self.info(key)
        size = entry.dtype.itemsize
        raw = self._reader.read(self.header.data_start + entry.start + start * size, count * size)
        if raw.ctypes.data % size:
            raw = raw.copy()  # files of others need not align tensors
        return torch.from_numpy(raw).view(entry.dtype)

    def crc32(self, key: str) -> str | None:
        return self.description.crc32[key] if self.description is not None else None

    def close(self) -> None:
        self._reader.close()


class Shards(Source):
    """Several files behind an index."""

    def __init__(self, files: Mapping[str, Source], weight_map: Mapping[str, str], name: str, save: Any) -> None:
        self.name = name
        self.files = files
        held = {key: file for file, source in files.items() for key in (*source.entries, *source.unread)}
        if held != dict(weight_map):
            wrong = sorted(set(held.items()) ^ set(weight_map.items()))
            raise DamagedFileError(f"{name} and its files disagree on {listing(key for key, _ in wrong)}")
        self._source_of = {key: files[file] for key, file in held.items()}
        self.entries = {key: entry for source in files.values() for key, entry in source.entries.items()}
        self.unread = {key: entry for source in files.values() for key, entry in source.unread.items()}
        described = [s.description for s in files.values() if s.description is not None]
        if any(d.save != save for d in described) or (described and len(described) != len(files)):
            raise DamagedFileError(f"{name} names files of another save; one of them was replaced")
        self.description = next((d for d in described if d.part[0] == 1), None)

    def read(self, key: str, start: int, count: int) -> Tensor:
        return self._source_of[key].read(key, start, count)

    def crc32(self, key: str) -> str | None:
        return self._source_of[key].crc32(key)

    def close(self) -> None:
        for source in self.files.values():
            source.close()


class Tensors(Source):
    """Tensors in memory.

    Args:
        unread: Tensors of dtypes that are not read, by name.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        description: Description | None = None,
        unread: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.name = name
        others = {} if unread is None else unread
        self.entries = {key: TensorInfo(t.dtype, tuple(t.shape), 0, t.nbytes) for key, t in tensors.items()}
        self.unread = {key: _unread(tensor) for key, tensor in others.items()}
        self.tensors = {**tensors, **{key: t.contiguous().reshape(-1).view(torch.uint8) for key, t in others.items()}}
        self.description = description

    def read(self, key: str, start: int, count: int) -> Tensor:
        tensor = self.tensors[key]
        if tensor.is_contiguous():
            return tensor.view(-1)[start : start + count]
        found = [
            tensor[index].reshape(-1)[max(start - first, 0) : start + count - first]
            for index, first, size in blocks(tuple(tensor.shape), max(count, 1))
            if first < start + count and first + size > start
        ]
        return torch.cat(found) if found else tensor.reshape(-1)[:0]

    def copy_to(self, target: Tensor, key: str, first: int = 0) -> None:
        if target.shape == self.tensors[key].shape:
            target.copy_(self.tensors[key], non_blocking=True)  # pinned, where they are a snapshot of a GPU's
        else:
            super().copy_to(target, key, first)

    def close(self) -> None:
        self.tensors = {}


def _unread(tensor: Tensor) -> Unread:
    return Unread(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), 0, tensor.nbytes)
