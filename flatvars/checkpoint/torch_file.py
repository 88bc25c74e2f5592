"""Files of torch.save (.pt, .pth, .bin): read with weights_only=True, so that no code of theirs runs."""

from __future__ import annotations

import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedFileError
from .blocks import PIECE
from .header import CODE_OF, listing
from .source import Reader, Tensors

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\n"  # what torch.save wrote before torch 1.6
# Where training scripts keep the state dict of the model.
NESTED = ("state_dict", "model_state_dict", "model")
# What the reader of torch says of bytes that are no pickle of anything.
JUNK = ("Unsupported operand", "String is too long", "persistent id")

KeyPath = tuple[str, ...]
"""Under which keys of a torch file, one within the other, the state dict lies; empty: it is looked for."""


def is_torch_file(start: bytes, suffix: str) -> bool:
    """From the first bytes and, where those say nothing, from the name."""
    if start[8:9] == b"{":
        return False
    return start.startswith((ZIP, LEGACY)) or suffix in TORCH_SUFFIXES


class TorchFile(Tensors):
    """A state dict; a file is mapped by torch, not read."""

    def __init__(self, reader: Reader, name: str, path: Path | None, key: KeyPath = ()) -> None:
        records = _records(reader, name)
        content = _load(reader.rewind(), path if records is not None else None, name)
        state = _state_dict(content, name, key)
        _check_dense(state, name)
        if records is not None and path is not None:
            _check_records(records, state.values(), name)
        found = {key: t.detach().resolve_conj().resolve_neg() for key, t in state.items()}
        known = {key: t for key, t in found.items() if t.dtype in CODE_OF}
        super().__init__(known, name, unread={key: t for key, t in found.items() if key not in known})
        self._reader = reader

    def close(self) -> None:
        super().close()
        self._reader.close()


def _load(stream: IO[bytes], path: Path | None, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own deprecations in files that old versions wrote
            if path is not None:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for damaged archives
        text = str(error)
        refused = isinstance(error, pickle.UnpicklingError) and not any(words in text for words in JUNK)
        if not refused and "TorchScript" not in text:
            raise _damaged(name, _reason(error)) from error
        culprit = re.search(r"GLOBAL ([\w.]+)", text)
        raise CheckpointError(
            f"{name} is refused: it wants to run code or make objects that are no tensors "
            f"({culprit[1] if culprit else text.splitlines()[0][:200]}); convert it to a plain state dict where you "
            "trust it"
        ) from error


def _reason(error: Exception) -> str:
    """What torch says, as far as it says something."""
    if (isinstance(error, OSError) and error.errno == errno.EINVAL) or "central directory" in str(error):
        return "it is truncated, for the directory at its end is missing"
    text = next(iter(str(error).splitlines()), "").split(". ")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _damaged(name: str, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{name} cannot be read as a torch file: {reason}")


# Archives ---------------------------------------------------------------------------------------------------------


def _records(reader: Reader, name: str) -> list[int] | None:
    """Bytes of each storage in a zip archive; None for a file of before torch 1.6.

    Raises:
        DamagedFileError: records that torch does not write: compressed, they could be of any size.
    """
    if not zipfile.is_zipfile(reader.rewind()):
        return None
    try:
        with zipfile.ZipFile(reader.rewind()) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(name, _reason(error)) from error
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _damaged(name, f"{packed[0]!r} in it is compressed, which torch.save does not do")
    return [record.file_size for record in records if "/data/" in record.filename]


def _check_records(records: list[int], tensors: Iterable[Tensor], name: str) -> None:
    """Raises DamagedFileError where a storage is larger than any record for it: mapped, torch reads on behind those."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    # Which is which, torch keeps to itself; the largest fit the largest, if all fit.
    pairs = zip(sorted(storages.values(), reverse=True), sorted(records, reverse=True), strict=False)
    if any(needed > there for needed, there in pairs):
        raise _damaged(name, "a tensor in it is cut off")


def _check_dense(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises CheckpointError for what has no elements in memory, or repeats a few of them without end."""
    expanded = 0
    for key, t in tensors.items():
        if t.layout != torch.strided or t.is_quantized or t.is_meta or t.is_nested:
            kind = "nested" if t.is_nested else f"{t.dtype}, {t.layout} and on {t.device}"
            raise CheckpointError(f"{key!r} of {name} is {kind}; only dense tensors are read")
        size, there = t.numel() * t.element_size(), t.untyped_storage().nbytes()
        expanded += size if size > there else 0
        if expanded > PIECE:
            raise CheckpointError(
                f"{key!r} of {name} is an expanded view of {size:,} bytes, of which the file holds {there:,}; save its "
                f".contiguous(): such views are read up to {PIECE:,} bytes in all"
            )


# What lies in it --------------------------------------------------------------------------------------------------


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _state_dict(content: Any, name: str, key: KeyPath) -> dict[str, Tensor]:
    found = _under(content, name, key) if key else _looked_for(content)
    if _is_state_dict(found):
        return dict(found)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{name} holds a {type(found).__name__}, not a state dict of tensors by name")
    choices = [repr(path[0] if len(path) == 1 else path) for path in _paths(found, key)]
    if choices:
        raise CheckpointError(
            f"{name} holds dicts of tensors by name under several keys, or under one that is not among "
            f"{', '.join(NESTED)}; say which is meant: key={' or key='.join(choices[:5])}"
        )
    others = [each for each, value in found.items() if not isinstance(value, Tensor) or not isinstance(each, str)]
    raise CheckpointError(
        f"{name} is no state dict: {listing(others)} are no tensors by name, and no dict within it holds tensors alone"
    )


def _under(content: Any, name: str, key: KeyPath) -> Any:
    for i, step in enumerate(key):
        if not isinstance(content, Mapping) or step not in content:
            there = listing(content) if isinstance(content, Mapping) else f"a {type(content).__name__}"
            where = f" under {key[:i]}" if i else ""
            raise CheckpointError(f"{name} has no key {step!r}{where}; there is {there}")
        content = content[step]
    return content


def _looked_for(content: Any) -> Any:
    """The content, or what lies in it under the keys that training scripts use, where there is one of them."""
    while isinstance(content, Mapping) and not _is_state_dict(content):
        nested = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        # A step count beside the model is no reason to look no further; weights are.
        beside = any(isinstance(value, Tensor) and value.numel() != 1 for value in content.values())
        if len(nested) != 1 or beside:
            break
        content = content[nested[0]]
    return content


def _paths(content: Mapping[Any, Any], before: KeyPath, levels: int = 2) -> Iterator[KeyPath]:
    """Where state dicts lie, a few levels deep."""
    for key, value in content.items():
        if isinstance(key, str) and _is_state_dict(value) and len(value):
            yield (*before, key)
        elif isinstance(key, str) and isinstance(value, Mapping) and levels > 1:
            yield from _paths(value, (*before, key), levels - 1)
