"""Reading a checkpoint without a store: names, shapes, tensors, and slices of tensors."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..errors import DamagedFileError, MismatchError
from .header import TensorInfo
from .opening import PathOrStream, TorchKey, opened


class Checkpoint:
    """An open checkpoint of any kind that `VarStore.load` reads; a context manager.

    Args:
        path: A file, an index, a folder, or a binary stream.
        key: Where the state dict lies in a file of torch; see `VarStore.load`.

    Raises:
        CheckpointError: there is none, or it wants to run code.
        DamagedFileError: it is no sound checkpoint.
    """

    def __init__(self, path: PathOrStream, *, key: TorchKey = None) -> None:
        self._stack = ExitStack()
        self._source = self._stack.enter_context(opened(path, key))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __repr__(self) -> str:
        source = self._source
        wrote = "" if source.description is None else ", written by flatvars"
        return f"Checkpoint({source.name!r}, {len(source.entries)} tensors{wrote})"

    def names(self) -> list[str]:
        """Of all tensors that can be read, training state included, in the order of the file."""
        return list(self._source.entries)

    @property
    def unread(self) -> dict[str, str]:
        """Tensors that cannot be read, by name: what the file calls their dtype ("F4")."""
        return {name: entry.code for name, entry in self._source.unread.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._source.entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, without reading it."""
        return self._entry(name).dtype

    @property
    def variables(self) -> dict[str, dict[str, Any]]:
        """What flatvars wrote of each variable (README.md of this folder); empty for files of other programs."""
        description = self._source.description
        return {} if description is None else description.variables

    def tensor(self, name: str) -> Tensor:
        """A tensor, [its shape], on the CPU, verified against its checksum where the file has one.

        Raises:
            MismatchError: no tensor of that name.
            DamagedFileError: its checksum is wrong.
        """
        self._entry(name)
        problems = self._source.damaged([name])
        if problems:
            raise DamagedFileError(problems[0])
        return self._source.whole(name)

    def slice(self, name: str, dim: int, rank: int, world_size: int) -> Tensor:
        """One rank's share of a tensor, cut along an axis into equal parts; only its bytes are read.

        Args:
            dim: Axis, from 0.
            rank, world_size: Which part of how many.

        Raises:
            MismatchError: no such tensor, or the axis does not divide evenly.

        Example:
            >>> store = VarStore.from_module(nn.Linear(4, 2))
            >>> store.save("model.safetensors")
            >>> with checkpoint.Checkpoint("model.safetensors") as file:
            ...     file.slice("weight", dim=0, rank=1, world_size=2).shape
            torch.Size([1, 4])
        """
        entry = self._entry(name)
        shape = entry.shape
        if not 0 <= dim < len(shape) or not 0 <= rank < world_size:
            raise MismatchError(f"dim={dim}, rank={rank} of {world_size} is no part of {name!r}, {shape}")
        length, uneven = divmod(shape[dim], world_size)
        if uneven:
            raise MismatchError(f"axis {dim} of {name!r} has length {shape[dim]}, which {world_size} does not divide")
        result = torch.empty((*shape[:dim], length, *shape[dim + 1 :]), dtype=entry.dtype)
        # Row-major: for each index of the axes before `dim`, the share is one run of elements.
        run = length * math.prod(shape[dim + 1 :])
        for i, row in enumerate(result.view(math.prod(shape[:dim]), run)):
            self._source.copy_to(row, name, (i * world_size + rank) * run)
        return result

    def _entry(self, name: str) -> TensorInfo:
        source = self._source
        if name in source.unread:
            raise MismatchError(f"{name!r} of {source.name} is {source.unread[name].code}, which is not read")
        if name not in source.entries:
            raise MismatchError(f"{source.name} holds no tensor {name!r}; names() lists them")
        return source.entries[name]
