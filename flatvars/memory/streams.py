"""Streams: contiguous buffers over a layout. Allocate, view, re-carve; no meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]

from .layout import Layout, Span

VALUES = "values"
GRADS = "grads"
FROZEN_ELEMENTS = "frozen_elements"


def view_of(stream: Tensor, span: Span) -> Tensor:
    """The variable's own shape over a stream, in its memory order."""
    return stream.as_strided(span.spec.shape, span.spec.stride, span.offset)


def piece_of(stream: Tensor, span: Span) -> Tensor:
    """The variable's own shape over the same memory, as a storage of its own that ends with the variable.

    Many programs ask for a tensor's storage, not for its bytes: pickle writes it whole for every view, deepcopy of a
    buffer copies it whole, Accelerate and safetensors take two tensors of one storage for one tied tensor and save the
    first alone, and torch.compile looks for overlaps among them. To all of these, a variable is now as any tensor.
    """
    if stream.device.type not in ("cpu", "cuda") or (stream.device.type == "cpu" and stream.is_shared()):  # type: ignore[no-untyped-call]
        # Shared memory is known by its storage: another process gets the whole buffer, once.
        return view_of(stream, span).data
    # As bytes, which the exchange format knows on every device; it keeps the buffer alive as long as the piece.
    raw = from_dlpack(to_dlpack(flat_of(stream, span).view(torch.uint8)))
    return raw.view(stream.dtype).as_strided(span.spec.shape, span.spec.stride)


def flat_of(stream: Tensor, span: Span) -> Tensor:
    """The variable's elements in memory order, [numel], without padding."""
    return stream[span.offset : span.offset + span.numel]


DtypeOf = Callable[[torch.dtype], torch.dtype]


def same_dtype(region: torch.dtype) -> torch.dtype:
    return region


def byte(region: torch.dtype) -> torch.dtype:
    """dtype of element masks, whatever their variables have."""
    return torch.uint8


class Streams:
    """All buffers of a store: `values` over whole regions, every other stream over their trainable parts.

    Padding is zero when a stream is made and stays zero: nothing but kernels writes there, and they store zeros.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._dtype_of: dict[str, DtypeOf] = {}
        for region in layout.regions:
            self._buffers[VALUES, region.dtype] = self._zeros(region.numel, region.dtype)

    def _zeros(self, numel: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(numel, dtype=dtype, device=self.device)

    def __contains__(self, key: tuple[str, torch.dtype]) -> bool:
        return key in self._buffers

    def values(self, region: torch.dtype) -> Tensor:
        return self._buffers[VALUES, region]

    def get(self, name: str, region: torch.dtype, dtype_of: DtypeOf = same_dtype) -> Tensor:
        """The stream `name` of a region, [trainable_numel]; made of zeros when first asked for.

        Args:
            dtype_of: From the region's dtype to the stream's; asked again when variables change theirs.
        """
        key = (name, region)
        if key not in self._buffers:
            self._dtype_of[name] = dtype_of
            self._buffers[key] = self._zeros(self.layout.region_of[region].trainable_numel, dtype_of(region))
        return self._buffers[key]

    def find(self, name: str, region: torch.dtype) -> Tensor | None:
        """The stream `name` of a region if it exists."""
        return self._buffers.get((name, region))

    def drop(self, name: str, region: torch.dtype | None = None) -> None:
        """Frees a stream in a region, or in all."""
        for key in [key for key in self._buffers if key[0] == name and region in (None, key[1])]:
            del self._buffers[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, padding included."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self._buffers))

    @torch.no_grad()
    def recarve(self, layout: Layout, device: torch.device, source: Mapping[int, int]) -> Streams:
        """The same streams over another layout, and on another device if it differs; this object is left as it was.

        Args:
            layout: The new layout. A variable whose dtype changed takes its values and state along, rounded.
            device: Of the new buffers.
            source: New span index to old span index, for the variables that existed before.

        Returns:
            New streams. What has no predecessor is zero.
        """
        new = Streams(layout, device)
        for (name, region), old in self._buffers.items():
            for to, origin in source.items():
                span, before = layout.spans[to], self.layout.spans[origin]
                if before.spec.dtype != region or not span.numel:
                    continue
                if name != VALUES and not (span.spec.trainable and before.spec.trainable):
                    continue
                kind = span.spec.dtype
                target = new.values(kind) if name == VALUES else new.get(name, kind, self._dtype_of[name])
                view_of(target, span).copy_(view_of(old, before))
        return new
