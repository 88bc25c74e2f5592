"""Files of torch.save (.pt, .pth, .bin): read with weights_only=True, so that no code of theirs runs; written whole."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedFileError
from .blocks import blocks
from .description import Description
from .files import publication
from .header import CODE_OF, Entry, listing
from .image import Image, value_views

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\n"  # what torch.save wrote before torch 1.6
# Where training scripts keep the state dict of the model.
NESTED = ("state_dict", "model_state_dict", "model")


def is_torch_file(start: bytes, suffix: str) -> bool:
    """From the first bytes and, where those say nothing, from the name."""
    if start[8:9] == b"{":
        return False
    return start.startswith((ZIP, LEGACY)) or suffix in TORCH_SUFFIXES


class TorchFile:
    """A state dict; a file is mapped by torch, not read."""

    description: Description | None = None

    def __init__(self, file: IO[bytes], name: str, path: str | None) -> None:
        self.name = name
        self._file = file if path is not None else None
        self._tensors = _state_dict(_load(file, path, name), name)
        self.entries: Mapping[str, Entry] = {key: _entry(key, t, name) for key, t in self._tensors.items()}

    def read(self, key: str, start: int, count: int) -> Tensor:
        """Elements of a tensor in row-major order, [count], on the CPU."""
        tensor = self._tensors[key]
        if tensor.is_contiguous():
            return tensor.view(-1)[start : start + count]
        found = [
            tensor[index].reshape(-1)[max(start - first, 0) : start + count - first]
            for index, first, size in blocks(tuple(tensor.shape), max(count, 1))
            if first < start + count and first + size > start
        ]
        return torch.cat(found) if found else tensor.reshape(-1)[:0]

    def crc32(self, key: str) -> str | None:
        return None

    def close(self) -> None:
        self._tensors = {}
        if self._file is not None:
            self._file.close()


def _load(file: IO[bytes], path: str | None, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own deprecations in files that old versions wrote
            if path is not None and zipfile.is_zipfile(path):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "TorchScript" not in str(error):
            raise _damaged(name, error) from error
        raise CheckpointError(
            f"{name} is refused: it wants to run code or make objects that are no tensors "
            f"({str(error).splitlines()[0][:200]}); convert it to a plain state dict where you trust it"
        ) from error
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen types for damaged archives
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DamagedFileError:
    return DamagedFileError(f"{name} cannot be read as a torch file: {(str(error).splitlines() or [repr(error)])[0]}")


def _state_dict(content: Any, name: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        nested = [key for key in NESTED if isinstance(content.get(key), Mapping)]
        content = content[nested[0]] if len(nested) == 1 else content
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a state dict of tensors by name")
    others = [key for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if others:
        raise CheckpointError(
            f"{name} is no state dict: {listing(others)} are no tensors by name. Needed is a dict of tensors, alone or "
            f"under one of {', '.join(NESTED)}"
        )
    return dict(content)


def _entry(key: str, tensor: Tensor, name: str) -> Entry:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in CODE_OF:
        raise CheckpointError(f"{key!r} of {name} is {tensor.dtype} and {tensor.layout}; only dense tensors are read")
    return Entry(tensor.dtype, tuple(tensor.shape), 0, tensor.numel() * tensor.dtype.itemsize)


def write_torch_file(image: Image, target: Path) -> None:
    """Writes the values as a state dict for torch.load, whole or not at all; tied names share their tensor.

    Raises:
        CheckpointError: no room on the disk.
    """
    content = value_views(image)
    with publication(target) as save:
        draft = save.draft(save.target)
        with open(draft.descriptor, "wb", closefd=False) as file:
            torch.save(content, file)
