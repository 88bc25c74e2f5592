"""Files of torch.save (.pt, .pth, .bin): read with weights_only=True, so that no code of theirs runs; written whole."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedFileError
from .header import CODE_OF, listing
from .source import Reader, Tensors

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\n"  # what torch.save wrote before torch 1.6
# Where training scripts keep the state dict of the model.
NESTED = ("state_dict", "model_state_dict", "model")
# What the reader of torch says of bytes that are no pickle of anything.
JUNK = ("Unsupported operand", "String is too long", "persistent id")


def is_torch_file(start: bytes, suffix: str) -> bool:
    """From the first bytes and, where those say nothing, from the name."""
    if start[8:9] == b"{":
        return False
    return start.startswith((ZIP, LEGACY)) or suffix in TORCH_SUFFIXES


class TorchFile(Tensors):
    """A state dict; a file is mapped by torch, not read."""

    def __init__(self, reader: Reader, name: str, path: Path | None) -> None:
        zipped = zipfile.is_zipfile(reader.rewind())
        content = _load(reader.rewind(), path if zipped else None, name)
        found = {key: t.resolve_conj().resolve_neg() for key, t in _state_dict(content, name).items()}
        for key, t in found.items():
            if t.layout != torch.strided or t.is_quantized or t.is_meta or t.dtype not in CODE_OF:
                kind = f"{t.dtype}, {t.layout} and on {t.device}"
                raise CheckpointError(f"{key!r} of {name} is {kind}; only dense tensors are read")
        if zipped and path is not None:
            _check_records(path, found.values(), name)
        super().__init__(found, name)
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
            raise _damaged(name, (text.splitlines() or [repr(error)])[0]) from error
        culprit = re.search(r"GLOBAL ([\w.]+)", text)
        raise CheckpointError(
            f"{name} is refused: it wants to run code or make objects that are no tensors "
            f"({culprit[1] if culprit else text.splitlines()[0][:200]}); convert it to a plain state dict where you "
            "trust it"
        ) from error


def _damaged(name: str, reason: str) -> DamagedFileError:
    return DamagedFileError(f"{name} cannot be read as a torch file: {reason}")


def _check_records(path: Path, tensors: Iterable[Tensor], name: str) -> None:
    """Raises DamagedFileError where a storage is larger than any record for it: mapped, torch reads on behind those."""
    with zipfile.ZipFile(path) as archive:
        records = [record.file_size for record in archive.infolist() if "/data/" in record.filename]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    # Which is which, torch keeps to itself; the largest fit the largest, if all fit.
    pairs = zip(sorted(storages.values(), reverse=True), sorted(records, reverse=True), strict=False)
    if any(needed > there for needed, there in pairs):
        raise _damaged(name, "a tensor in it is cut off")


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        nested = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        if len(nested) != 1:
            break
        content = content[nested[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a state dict of tensors by name")
    others = [key for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if others:
        raise CheckpointError(
            f"{name} is no state dict: {listing(others)} are no tensors by name. Needed is a dict of tensors, alone or "
            f"under one of {', '.join(NESTED)}"
        )
    return dict(content)
