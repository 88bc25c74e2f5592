"""Streams: contiguous buffers over a layout. Allocate, view, grow, re-carve; no meaning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backend import UNIT, Format, FormatPart, Stored, round_up
from ..errors import FlatvarsError
from .layout import Layout, Region, Span
from .pages import paged_zeros
from .piece import piece_of
from .ranks import GRAIN

VALUES = "values"
GRADS = "grads"
FROZEN_ELEMENTS = "frozen_elements"

Cover = tuple[int, int]
"""Elements of a region, from the first to the one behind the last."""

Form = torch.dtype | Format
"""How the numbers of a stream are stored."""

FormOf = Callable[[torch.dtype], Form]


def same_dtype(region: torch.dtype) -> torch.dtype:
    return region


def byte(region: torch.dtype) -> torch.dtype:
    """dtype of element masks, whatever their variables have."""
    return torch.uint8


@dataclass(frozen=True)
class Stream:
    """A buffer over a range of a region; spans are those of the layout, wherever the range begins.

    `read` and `write` are how everybody but kernels sees what it holds, however it is stored.

    Attributes:
        buffer: [elements of the range]; of a format, its codes.
        base: Element of the region at which the range begins.
        shared: Other processes use it, who find memory by the storage of a tensor: pieces are then plain views, and
            another process gets the whole buffer, once.
        divided: It is a rank's share: of a variable it holds all, a part or nothing, and what shows that is a `Piece`.
        format: How numbers are stored; None where the dtype of the buffer says it.
        beside: The buffers of the other parts of the format.
        unit: The unit at which those of them begin that have an item for each unit.
        at_random: Of values: a step rounds them at random.
        pieces: Of values that stay wherever somebody else put them: those of each variable with elements, [shape], by
            its offset. The buffer is empty then, and says of which dtype they are.
    """

    buffer: Tensor
    base: int = 0
    shared: bool = False
    divided: bool = False
    format: Format | None = None
    beside: tuple[Tensor, ...] = ()
    unit: int = 0
    at_random: bool = False
    pieces: Mapping[int, Tensor] | None = None

    @property
    def cover(self) -> Cover:
        return self.base, self.base + self.numel

    @property
    def numel(self) -> int:
        """Elements of the range."""
        return len(self.buffer) * (1 if self.format is None else self.format.parts[0].each)

    def from_base(self, base: int) -> Stream:
        """The same memory from an element of the region on."""
        if base == self.base:
            return self
        if self.format is not None:
            raise FlatvarsError("a stream of a format is not cut: its units begin where variables do")
        return dataclasses.replace(self, buffer=self.buffer[base - self.base :], base=base)

    def covers(self, span: Span) -> bool:
        """Whether it holds all of a variable, or this rank's part of it."""
        return self.divided or self.pieces is not None or (self.base <= span.offset and span.stop <= self.cover[1])

    def share(self, span: Span) -> tuple[int, Tensor]:
        """The elements of a variable that it holds, [elements] in memory order, and which of them is the first."""
        first, stop = self.bounds(span)
        begin = span.offset + first - self.base if first < stop else 0
        return first, self.buffer[begin : begin + stop - first]

    def bounds(self, span: Span) -> tuple[int, int]:
        """The elements of a variable that it holds, in memory order: the first, and the one behind the last."""
        first = min(max(self.base - span.offset, 0), span.numel)
        return first, min(max(self.base + self.numel - span.offset, first), span.numel)

    def view(self, span: Span) -> Tensor:
        """The variable's own shape over the stream, in its memory order; a `Piece` where the stream is divided."""
        if self.divided:
            first, local = self.share(span)
            return piece_of(local, first, span.spec.shape, span.spec.stride)
        if self.pieces is not None:
            return self.pieces[span.offset] if span.numel else self.buffer.new_empty(span.spec.shape)
        return self.buffer.as_strided(span.spec.shape, span.spec.stride, span.offset - self.base)

    def flat(self, span: Span) -> Tensor:
        """The variable's elements in memory order, [numel], without padding."""
        if self.pieces is not None:
            return self.view(span).as_strided((span.numel,), (1,))
        start = span.offset - self.base
        return self.buffer[start : start + span.numel]

    def piece(self, span: Span) -> Tensor:
        """The variable's own shape over the same memory, as a storage of its own that ends with the variable.

        Many programs ask for a tensor's storage, not for its bytes: pickle writes it whole for every view, deepcopy of
        a buffer copies it whole, Accelerate and safetensors take two tensors of one storage for one tied tensor and
        save the first alone, and torch.compile looks for overlaps among them. To all of these, a variable is now as any
        tensor.
        """
        return self.own_pieces([span])[0]

    def own_pieces(self, spans: Iterable[Span]) -> list[Tensor]:
        """That of each."""
        device, buffer = self.buffer.device.type, self.buffer
        if self.divided or self.pieces is not None:
            return [self.view(span) for span in spans]
        if self.shared or device not in ("cpu", "cuda") or (device == "cpu" and is_shared(buffer)):
            return [self.view(span).data for span in spans]
        begin, size, storage = int(buffer.storage_offset()) - self.base, buffer.element_size(), buffer.untyped_storage()
        # That of the class itself asks for the device each time, which takes longer than the slice.
        slice_of: Any = super(torch.UntypedStorage, storage).__getitem__
        empty, found = buffer.new_empty(0), []
        for spec, offset, _ in spans:
            shape, first = spec.shape, size * (begin + offset)
            # A slice of a storage keeps the whole alive, and cannot be resized.
            piece = slice_of(slice(first, first + size * math.prod(shape)))
            found.append(empty.data.set_(piece, 0, shape, spec.stride))
        return found

    @property
    def stored(self) -> Stored:
        """For launches."""
        return Stored(self.buffer, self.format, self.beside, self.at_random)

    def stored_at(self, spans: Iterable[Span], firsts: Iterable[int]) -> Stored:
        """For launches over these variables, wherever their pieces lie; `firsts` are those of `Segments`."""
        size, pairs = self.buffer.element_size(), zip(spans, firsts, strict=True)
        places = torch.tensor([self.view(span).data_ptr() - size * first for span, first in pairs], dtype=torch.int64)
        return Stored(self.buffer, places=places.to(self.buffer.device))

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes + sum(buffer.nbytes for buffer in self.beside)

    def named(self) -> list[tuple[FormatPart, Tensor]]:
        """All its buffers."""
        if self.format is None:
            return [(FormatPart("", self.buffer.dtype), self.buffer)]
        return list(zip(self.format.parts, (self.buffer, *self.beside), strict=True))

    def is_encoded(self, span: Span) -> bool:
        """Whether a variable is stored in the format; one without room is as the dtype of the buffer says."""
        return self.format is not None and span.spec.has_room

    def dtype_of(self, span: Span) -> torch.dtype:
        """What `read` returns of a variable."""
        return torch.float32 if self.is_encoded(span) else self.buffer.dtype

    def parts(self, span: Span, first: int = 0, stop: int | None = None) -> list[Tensor]:
        """What each buffer of the format holds of a variable, in memory order.

        Args:
            first, stop: Of its elements in memory order, the first a multiple of 128; all if not given.
        """
        assert self.format is not None
        numel = (span.numel if stop is None else stop) - first
        found = []
        for part, buffer in self.named():
            whole = (span.offset - self.base + first) // part.each
            start = span.unit - self.unit + first // UNIT if part.units else whole
            found.append(buffer[start : start + part.items(numel)])
        return found

    def decoded(self, span: Span, first: int, stop: int) -> Tensor:
        """Some of a variable's elements in memory order, float32; `first` is a multiple of 128."""
        assert self.format is not None
        return self.format.numbers(self.parts(span, first, stop), stop - first)

    def read(self, span: Span) -> Tensor:
        """What the stream holds of a variable, [shape], as state dicts, files and copies see it.

        In place, but for a stream of a format: of that, numbers in memory of their own. A `Piece` of a share.
        """
        if self.format is None or not self.is_encoded(span):
            return self.view(span)
        if self.divided:
            first, stop = self.bounds(span)
            return piece_of(self._decoded_part(span, first, stop), first, span.spec.shape, span.spec.stride)
        return self.format.numbers(self.parts(span), span.numel).as_strided(span.spec.shape, span.spec.stride)

    def write(self, span: Span, tensor: Tensor | None) -> None:
        """Replaces what it holds of a variable by a tensor, [shape], or by zeros."""
        if self.format is None or not self.is_encoded(span):
            view = self.view(span)
            view.zero_() if tensor is None else view.copy_(tensor)
            return
        first, stop = self.bounds(span) if self.divided else (0, span.numel)
        numbers = torch.zeros(stop - first, dtype=torch.float32, device=self.buffer.device)
        if tensor is not None and self.divided:
            piece_of(numbers, first, span.spec.shape, span.spec.stride).copy_(tensor)
        elif tensor is not None:
            numbers.as_strided(span.spec.shape, span.spec.stride).copy_(tensor)
        for part, items in zip(self.parts(span, first, stop), self.format.encode(numbers), strict=True):
            part.copy_(items)

    def _decoded_part(self, span: Span, first: int, stop: int) -> Tensor:
        """The same as `decoded`, also where there is nothing."""
        if first == stop:
            return torch.zeros(0, dtype=torch.float32, device=self.buffer.device)
        return self.decoded(span, first, stop)

    def room(self, span: Span) -> Tensor:
        """Where to put what `write` is then given of a variable, [shape]: in place, or anew for a format or a share."""
        if not self.is_encoded(span) and not self.divided:
            return self.view(span)
        dtype = self.dtype_of(span)
        return torch.empty_strided(span.spec.shape, span.spec.stride, dtype=dtype, device=self.buffer.device)

    def numbers(self, spans: Iterable[Span]) -> Tensor:
        """All of it as numbers, [elements of the range]: in place, or decoded, with zeros between these variables.

        Of pieces, a copy up to the last of these variables.
        """
        if self.pieces is not None:
            chosen = list(spans)
            found = self.buffer.new_zeros(max((span.stop for span in chosen), default=0))
            for span in chosen:
                found[span.offset :][: span.numel] = self.flat(span)
            return found
        if self.format is None:
            return self.buffer
        found = torch.zeros(self.numel, dtype=torch.float32, device=self.buffer.device)
        for span in spans:
            found[span.offset - self.base :][: span.numel] = self.decoded(span, 0, span.numel)
        return found

    def take(self, span: Span, other: Stream, origin: Span) -> None:
        """Writes what another stream holds of a variable, as it is where both store it alike."""
        both = self.is_encoded(span) and other.is_encoded(origin) and self.format == other.format
        if not both or span.spec.stride != origin.spec.stride:
            self.write(span, other.read(origin))
            return
        for mine, theirs in zip(self.parts(span), other.parts(origin), strict=True):
            mine.copy_(theirs)

    def clear(self) -> None:
        """Makes all of it zero, what lies between variables too."""
        for buffer in (self.buffer, *self.beside):
            buffer.zero_()

    def replace(self, other: Stream) -> None:
        """Writes all that another stream holds, which covers the same range in the same format."""
        for mine, theirs in zip((self.buffer, *self.beside), (other.buffer, *other.beside), strict=True):
            mine.copy_(theirs, non_blocking=True)

    def is_like(self, other: Stream) -> bool:
        """Whether `replace` may be given another stream."""
        return (
            self.cover == other.cover
            and self.divided == other.divided
            and self.format == other.format
            and self.unit == other.unit
        )


class Streams:
    """All buffers of a store: `values` over whole regions, every other stream over their trainable parts or less.

    Padding is zero when a stream is made and stays zero: nothing but kernels writes there, and they store zeros.

    Args:
        shared: Values lie where other processes can use them, here and after every re-carve.
        values: The format of the values of variables with room, in regions of its dtype; None for none.
        placed: Values stay where they are, and no buffer is made for them; see `put`.
    """

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        shared: bool = False,
        values: Format | None = None,
        placed: bool = False,
    ) -> None:
        self.layout = layout
        self.device = device
        self._shared = shared
        self._format = values
        self._placed = placed
        self._streams: dict[tuple[str, torch.dtype], Stream] = {}
        self._form_of: dict[str, FormOf] = {}
        self._partial: set[str] = set()  # streams that cover what they were asked for, and not a whole trainable part
        self._divided: set[str] = set()  # streams of this rank's share alone
        for region in layout.regions:
            buffer = self._zeros(0 if placed else region.numel, region.dtype)
            self._streams[VALUES, region.dtype] = self._values(region, buffer)

    def put(self, pieces: Iterable[tuple[Span, Tensor]]) -> None:
        """Says where the values of all variables lie, [shape] each, of which this object looks after none."""
        found: dict[torch.dtype, dict[int, Tensor]] = {region.dtype: {} for region in self.layout.regions}
        for span, piece in pieces:
            if span.numel:
                found[span.spec.dtype][span.offset] = piece
        for dtype, some in found.items():
            held = self._streams[VALUES, dtype]
            self._streams[VALUES, dtype] = dataclasses.replace(held, pieces=some)

    def _zeros(self, numel: int, dtype: torch.dtype) -> Tensor:
        with normal_tensors():
            return paged_zeros(numel, dtype, self.device)

    def _values(self, region: Region, buffer: Tensor) -> Stream:
        if self._shared:
            buffer.share_memory_()  # type: ignore[no-untyped-call]  # which memory of a GPU need not be moved for
        format_ = self._format
        if format_ is None or format_.parts[0].dtype != region.dtype:
            return Stream(buffer, shared=self._shared)
        if format_.is_plain:
            return Stream(buffer, shared=self._shared, at_random=True)
        sizes = [region.trainable_units if part.units else region.trainable_numel for part in format_.parts]
        beside = [self._zeros(n, part.dtype) for n, part in zip(sizes[1:], format_.parts[1:], strict=True)]
        return Stream(buffer, format=format_, beside=tuple(beside))

    def share(self) -> None:
        """Moves the values to where other processes can use them; pieces made before are of other memory.

        Raises:
            FlatvarsError: values are of a format.
        """
        if self._format is not None and not self._format.is_plain:
            raise FlatvarsError(
                f"values={self._format.name!r} keeps a part of every value where no other process would see it; share "
                "a store of plain values"
            )
        self._shared = True
        for region in self.layout.regions:
            self._streams[VALUES, region.dtype] = self._values(region, self.values(region.dtype))

    def __contains__(self, key: tuple[str, torch.dtype]) -> bool:
        return key in self._streams

    def values(self, region: torch.dtype) -> Tensor:
        """The flat values of a region.

        Raises:
            FlatvarsError: they lie where FSDP2 or tensor parallelism put them.
        """
        if self._placed:
            raise FlatvarsError(
                "the values of this store are shards that stay where fully_shard or parallelize_module put them, so "
                "there is no flat buffer of them: work on the module's parameters, or take one shard by "
                "store[name].value"
            )
        return self._streams[VALUES, region].buffer

    def share_of(self, name: str, region: torch.dtype, form_of: FormOf, cover: Cover | None = None) -> Stream:
        """A stream over this rank's share of a region, or of what it must cover; made of zeros when first asked for."""
        self._divided.add(name)
        share = self.layout.share(region)
        start, stop = (min(max(end, share[0]), share[1]) for end in cover or share)
        return self.get(name, region, form_of, (start, stop))

    @property
    def divided(self) -> list[str]:
        """Names of the streams that hold this rank's share alone."""
        return list(dict.fromkeys(name for name, _ in self._streams if name in self._divided))

    def get(self, name: str, region: torch.dtype, form_of: FormOf = same_dtype, cover: Cover | None = None) -> Stream:
        """The stream `name` of a region; made of zeros when first asked for.

        Args:
            form_of: From the region's dtype to how the stream is stored; asked again when variables change theirs.
            cover: What it must cover; all of the trainable part if not given. A stream that covers less grows to cover
                both, and keeps what it holds: earlier `Stream` objects are then another memory.
        """
        old = self._streams.get((name, region))
        if old is not None and (cover is None or (old.base <= cover[0] and cover[1] <= old.cover[1])):
            return old
        end = self.layout.region_of[region].trainable_numel
        if old is None:
            self._form_of[name] = form_of
            if cover is not None:
                self._partial.add(name)
        start, stop = (0, end) if cover is None else cover
        if old is not None:
            start, stop = min(start, old.base), max(stop, old.cover[1])
        base = start // GRAIN * GRAIN
        numel = max(min(round_up(stop, GRAIN), end) - base, 0)
        made = self._make(self._form_of[name](region), region, base, numel)
        if name in self._divided:
            made = dataclasses.replace(made, divided=True)
        if old is not None:
            for (part, mine), (_, theirs) in zip(made.named(), old.named(), strict=True):
                shift = old.unit - made.unit if part.units else (old.base - base) // part.each
                mine[shift:][: len(theirs)].copy_(theirs)
        self._streams[name, region] = made
        return made

    def _make(self, form: Form, region: torch.dtype, base: int, numel: int) -> Stream:
        """A stream of zeros."""
        if isinstance(form, torch.dtype):
            return Stream(self._zeros(numel, form), base)
        unit, end = self.layout.unit_at(region, base), self.layout.unit_at(region, base + numel)
        lengths = [end - unit if part.units else part.items(numel) for part in form.parts]
        first, *beside = [self._zeros(n, part.dtype) for n, part in zip(lengths, form.parts, strict=True)]
        return Stream(first, base, format=form, beside=tuple(beside), unit=unit)

    def find(self, name: str, region: torch.dtype) -> Stream | None:
        """The stream `name` of a region if it exists."""
        return self._streams.get((name, region))

    def drop(self, name: str, region: torch.dtype | None = None) -> None:
        """Frees a stream in a region, or in all."""
        for key in [key for key in self._streams if key[0] == name and region in (None, key[1])]:
            del self._streams[key]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, padding included."""
        return sum(stream.nbytes for stream in self._streams.values())

    def items(self) -> list[tuple[str, Stream]]:
        """All streams with their names, one for each region that they are over."""
        return [(name, stream) for (name, _), stream in self._streams.items()]

    def names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self._streams))

    @torch.no_grad()
    def recarve(self, layout: Layout, device: torch.device, source: Mapping[int, int]) -> Streams:
        """The same streams over another layout, and on another device if it differs; this object is left as it was.

        Args:
            layout: The new layout. A variable whose dtype changed takes its values and state along, rounded.
            device: Of the new buffers.
            source: New span index to old span index, for the variables that existed before.

        Returns:
            New streams. What has no predecessor is zero. Of a rank's share the memory is the same: the layout must be.
        """
        new = Streams(layout, device, self._shared, self._format, self._placed)
        new._partial = {name for name, _ in self._streams} & self._partial
        for (name, region), old in self._streams.items():
            if name == VALUES and self._placed:
                continue
            if name in self._divided:
                new._divided.add(name)
                new._streams[name, region], new._form_of[name] = old, self._form_of[name]
                continue
            pairs = [(layout.spans[to], self.layout.spans[origin]) for to, origin in source.items()]
            pairs = [(to, origin) for to, origin in pairs if origin.spec.dtype == region and to.numel]
            if name != VALUES:
                pairs = [(to, origin) for to, origin in pairs if to.spec.has_room and origin.spec.has_room]
            if name in self._partial:
                first, end = old.cover
                pairs = [(to, origin) for to, origin in pairs if first <= origin.offset and origin.stop <= end]
            for dtype in dict.fromkeys(to.spec.dtype for to, _ in pairs):
                chosen = [pair for pair in pairs if pair[0].spec.dtype == dtype]
                target = new._streams[name, dtype] if name == VALUES else new._successor(self, name, dtype, chosen)
                for to, origin in chosen:
                    target.take(to, old, origin)
        return new

    def _successor(self, old: Streams, name: str, region: torch.dtype, pairs: list[tuple[Span, Span]]) -> Stream:
        """The stream that takes over from one of `old`, over as much as the variables need."""
        cover = hull(to for to, _ in pairs) if name in self._partial else None
        return self.get(name, region, old._form_of[name], cover)


@contextmanager
def normal_tensors() -> Iterator[None]:
    """Inside, tensors are made that training may use, also if the caller is in inference mode.

    A tensor made there has no version counter, and nothing that was made of it can be saved for a backward pass.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def is_shared(tensor: Tensor) -> bool:
    """As `tensor.is_shared()`, which makes two objects more to ask its storage."""
    shared: bool = tensor.untyped_storage().is_shared()
    return shared


def own_storage(flat: Tensor) -> Tensor:
    """The same elements of a buffer, [numel], as a tensor whose storage holds no others."""
    first = int(flat.storage_offset()) * flat.element_size()
    storage = flat.untyped_storage()[first : first + flat.nbytes]
    return flat.new_empty(0).set_(storage, 0, (flat.numel(),), (1,))  # type: ignore[call-overload, no-any-return]


def hull(spans: Iterable[Span]) -> Cover:
    """What some spans of one region cover, with what lies between them."""
    pairs = [(span.offset, span.stop) for span in spans]
    return min(start for start, _ in pairs), max(stop for _, stop in pairs)
