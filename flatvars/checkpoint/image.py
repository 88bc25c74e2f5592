"""An image: all that a checkpoint holds, as flat streams over one layout; of a store in use, or copied to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..layout import Layout, Span
from ..registry import Registry
from ..streams import FROZEN_ELEMENTS, VALUES, flat_of, view_of
from ..variable import Variable
from .blocks import HostStream, is_row_major
from .description import Description
from .header import CODE_OF

if TYPE_CHECKING:
    from .training import Training

"""The stream of elements that are not trained (nonzero); it exists only where masks are used."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a file says of a variable; `numel` and `row_major` of its span, which each stream asks for."""

    span: Span
    id: int
    names: tuple[str, ...]
    trainable: bool
    frozen: bool
    group: int
    numel: int
    row_major: bool

    @property
    def name(self) -> str:
        return self.names[0]

    def describe(self) -> dict[str, Any]:
        """As JSON; strides and names only where they are not what one expects."""
        spec = self.span.spec
        result: dict[str, Any] = {
            "id": self.id,
            "dtype": CODE_OF[spec.dtype],
            "offset": self.span.offset,
            "trainable": self.trainable,
            "frozen": self.frozen,
            "room": spec.trainable,
            "group": self.group,
            "stride": list(spec.stride),
        }
        return {**result, "names": list(self.names)} if len(self.names) > 1 else result


def record_of(variable: Variable) -> Record:
    group = variable.group
    return make_record(
        variable.span, variable.id, tuple(variable.names), variable.requires_grad, variable.frozen, group
    )


def make_record(span: Span, id: int, names: tuple[str, ...], trainable: bool, frozen: bool, group: int) -> Record:
    return Record(span, id, names, trainable, frozen, group, span.numel, is_row_major(span))


@dataclass
class Plane:
    """One stream of one region.

    Attributes:
        label: Prefix of its tensors in a file; "" for values.
        stream: Its name in the registry.
        region: Dtype of the values beside it.
        buffer: The stream itself, or a copy.
        has: Whether a variable's part of it goes into a file, given the buffer.
    """

    label: str
    stream: str
    region: torch.dtype
    buffer: Tensor
    has: Callable[[Record, Tensor], bool]


@dataclass
class Image:
    """Streams with all that belongs to them.

    Attributes:
        layout: That the planes lie over.
        records: Variables in creation order; those of a selection, if one was made.
        planes: Streams.
        training: What goes with an optimizer; None for values alone.
    """

    layout: Layout
    records: list[Record]
    planes: list[Plane]
    training: Training | None = None
    loose: dict[str, Tensor] = field(default_factory=dict)

    def describe(self) -> Description:
        labels = [plane.label for plane in self.planes if plane.label]
        labels += [key.partition("/")[0] for key in self.loose]
        return Description(
            variables={record.name: record.describe() for record in self.records},
            layout=[[CODE_OF[r.dtype], r.numel, r.trainable_numel] for r in self.layout.regions],
            streams=list(dict.fromkeys(labels)),
            training=None if self.training is None else self.training.describe(),
        )


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor to be written: a variable's part of a stream, or a tensor of its own."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    source: HostStream | Tensor
    record: Record | None = None

    def read(self) -> Iterator[memoryview]:
        """Its bytes in row-major order, in pieces that stay valid."""
        if isinstance(self.source, Tensor):
            flat = self.source.detach().cpu().contiguous().view(-1)
            return iter([flat.view(torch.uint8).numpy().data] if self.nbytes else [])
        assert self.record is not None
        return self.source.pieces(self.record.span, self.record.numel, self.record.row_major)


def items_of(image: Image) -> list[Item]:
    """Tensors of an image in the order of a file: wide dtypes first, so that each is aligned to its own size.

    Raises:
        CheckpointError: two tensors have one name, as when a variable is called "exp_avg/...".
    """
    items = []
    for plane in image.planes:
        host = HostStream(plane.buffer)
        members = [r for r in image.records if r.span.spec.dtype == plane.region and plane.has(r, plane.buffer)]
        for record in sorted(members, key=lambda record: (record.span.offset, record.id)):
            items.append(_item(plane, host, record))
    items += [Item(key, t.dtype, tuple(t.shape), t.nbytes, t) for key, t in image.loose.items()]
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise CheckpointError(
                f"two tensors would be called {item.key!r} in the file; rename the variable of that name"
            )
        seen.add(item.key)
    return sorted(items, key=lambda item: -item.dtype.itemsize)


def _item(plane: Plane, host: HostStream, record: Record) -> Item:
    key = f"{plane.label}/{record.name}" if plane.label else record.name
    return Item(key, host.dtype, record.span.spec.shape, record.numel * host.itemsize, host, record)


def always(_: Record, buffer: Tensor) -> bool:
    return True


def image_of(registry: Registry, records: list[Record]) -> Image:
    """The values of some variables of a registry, in place; and its element masks, where there are any.

    Raises:
        CheckpointError: a dtype that no file can hold.
    """
    for region in registry.layout.regions:
        if region.dtype not in CODE_OF:
            raise CheckpointError(f"the store holds {region.dtype} variables, which safetensors files cannot hold")
    planes = [
        Plane("", VALUES, region.dtype, registry.streams.values(region.dtype), always)
        for region in registry.layout.regions
    ]
    for region in registry.layout.regions:
        if (FROZEN_ELEMENTS, region.dtype) in registry.streams:
            mask = registry.streams.get(FROZEN_ELEMENTS, region.dtype)
            planes.append(Plane(FROZEN_ELEMENTS, FROZEN_ELEMENTS, region.dtype, mask, any_element))
    return Image(registry.layout, records, planes)


def any_element(record: Record, mask: Tensor) -> bool:
    """Whether an element of a variable is masked."""
    return record.span.spec.trainable and bool(flat_of(mask, record.span).any())


def value_views(image: Image) -> dict[str, Tensor]:
    """The values by every name, in their own shapes and in memory of their own; row-major."""
    streams = {plane.region: plane.buffer for plane in image.planes if plane.stream == VALUES}
    views = {}
    for record in image.records:
        # A clone: torch.save writes the whole storage of a view, which is the store.
        value = view_of(streams[record.span.spec.dtype], record.span).detach().cpu().contiguous().clone()
        views.update(dict.fromkeys(record.names, value))
    return views


def existing(registry: Registry, stream: str) -> list[tuple[torch.dtype, Tensor]]:
    """The regions of a stream that exist."""
    dtypes = [region.dtype for region in registry.layout.regions]
    return [(d, registry.streams.get(stream, d)) for d in dtypes if (stream, d) in registry.streams]
