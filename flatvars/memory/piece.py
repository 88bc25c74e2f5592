"""Piece: a tensor of a variable's whole shape, of which this rank holds one run of elements.

It is what `optimizer.state` and state dicts show where state is shared out over ranks. torch.distributed.checkpoint
asks it which boxes of the tensor lie here, and reads and writes them in place. A DTensor could not say that: its shards
are whole slices of an axis, and a rank's range of a flat buffer begins and ends anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import FlatvarsError
from .boxes import Box, boxes_of, strides_of

aten = torch.ops.aten
# Operators that treat all elements alike: done with what lies here, they are done.
ALIKE = {
    getattr(aten, name).default
    for name in ("detach", "clone", "_to_copy", "zero_", "empty_like", "zeros_like", "ones_like", "alias")
}


class Piece(Tensor):
    """See above; made by `piece_of`.

    Attributes:
        local: The elements that lie here, [elements], in memory order.
        first: Which of the variable's elements in memory order `local` begins with.
    """

    local: Tensor
    first: int

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def boxes(self) -> list[Box]:
        """What lies here, as rectangular pieces of the tensor; one without elements of a tensor without elements."""
        if not self.numel():
            return [Box((0,) * self.dim(), tuple(self.shape), self.first)]
        return boxes_of(self.first, self.first + len(self.local), tuple(self.shape), self.stride())

    def view_of(self, box: Box) -> Tensor:
        """One of its boxes, [sizes], in place."""
        return self.local.as_strided(
            box.sizes, strides_of(box, self.stride()), self.local.storage_offset() + box.start - self.first
        )

    def fetch(self, source: Tensor) -> None:
        """Copies what lies here from a tensor of the whole shape, or from another piece that holds it all."""
        if tuple(source.shape) != tuple(self.shape):
            raise FlatvarsError(f"a state of shape {tuple(self.shape)} was given one of shape {tuple(source.shape)}")
        if not isinstance(source, Piece):
            for box in self.boxes():
                part = tuple(slice(begin, begin + size) for begin, size in zip(box.offsets, box.sizes, strict=True))
                self.view_of(box).copy_(source[part])
            return
        begin = self.first - source.first
        if source.stride() != self.stride() or begin < 0 or begin + len(self.local) > len(source.local):
            raise FlatvarsError(
                f"this rank holds elements {self.first} to {self.first + len(self.local)} of a state of shape "
                f"{tuple(self.shape)}, and was given {source.first} to {source.first + len(source.local)}; states of "
                "another number of ranks are loaded by torch.distributed.checkpoint"
            )
        self.local.copy_(source.local[begin : begin + len(self.local)])

    def __repr__(self) -> str:  # type: ignore[override]
        shape, stop = tuple(self.shape), self.first + len(self.local)
        return f"Piece({shape}, {self.dtype}, elements {self.first} to {stop} of {self.numel()} on {self.device})"

    # What torch.distributed.checkpoint asks -----------------------------------------------------------------------

    def __create_write_items__(self, fqn: str, tensor: Tensor) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)) for box in self.boxes()]

    def __get_tensor_shard__(self, index: Any) -> Tensor:
        for box in self.boxes():
            if index.offset is not None and tuple(index.offset) == box.offsets:
                return self.view_of(box)
        raise FlatvarsError(f"no piece of {index.fqn!r} at {index.offset} lies here; it holds {self.boxes()}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise FlatvarsError(
            f"{self!r} is shared out over ranks, and a file of this rank would hold a part alone: save with "
            "torch.distributed.checkpoint on all ranks"
        )

    # Operators ----------------------------------------------------------------------------------------------------

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, this = dict(kwargs or {}), args[0]
        if func is aten.copy_.default and isinstance(this, Piece):
            this.fetch(args[1])
            return this
        if func is aten.new_empty.default and tuple(args[1]) == tuple(this.shape):
            local = this.local.new_empty(len(this.local), **kwargs)
            return piece_of(local, this.first, tuple(this.shape), this.stride())
        if func not in ALIKE or not isinstance(this, Piece):
            raise NotImplementedError(
                f"{func} was called on {next(a for a in args if isinstance(a, Piece))!r}: the state is shared out over "
                "ranks. Work on `.local`, the elements that lie here, or save and load it with "
                "torch.distributed.checkpoint"
            )
        kwargs.pop("memory_format", None)
        found = func(this.local, *args[1:], **kwargs)
        return this if found is this.local else piece_of(found, this.first, tuple(this.shape), this.stride())


def piece_of(local: Tensor, first: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Piece:
    """A tensor of a shape and memory order, of which `local`, [elements], lies here, from element `first` on."""
    made: Piece = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
        Piece, shape, strides=stride, dtype=local.dtype, device=local.device
    )
    made.local, made.first = local, first
    return made
