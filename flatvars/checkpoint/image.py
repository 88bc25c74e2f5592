"""An image: all that a checkpoint holds, as flat streams over one layout; of a store in use, or copied to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..memory.layout import Layout
from ..memory.streams import FROZEN_ELEMENTS, VALUES, Stream
from ..variables.registry import Registry
from .description import Description
from .header import CODE_OF
from .records import Catalog, Record

if TYPE_CHECKING:
    from .training import Training


@dataclass
class Plane:
    """One stream of one region.

    Attributes:
        label: Prefix of its tensors in a file; "" for values.
        stream: Its name in the registry.
        region: Dtype of the values beside it.
        held: The stream itself, or a copy.
        choose: Of records in memory order, those whose part of it goes into a file, given `held`.
    """

    label: str
    stream: str
    region: torch.dtype
    held: Stream
    choose: Callable[[list[Record], Stream], list[Record]]


@dataclass
class Image:
    """Streams with all that belongs to them.

    Attributes:
        layout: That the planes lie over.
        catalog: Variables; those of a selection, if one was made.
        planes: Streams.
        training: What goes with an optimizer; None for values alone.
        loose: Tensors of no stream, by their names in the file.
    """

    layout: Layout
    catalog: Catalog
    planes: list[Plane]
    training: Training | None = None
    loose: dict[str, Tensor] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        return self.catalog.records

    def describe(self) -> Description:
        """All but the variables, which the catalog keeps as text."""
        labels = [plane.label for plane in self.planes if plane.label]
        labels += [key.partition("/")[0] for key in self.loose]
        return Description(
            layout=[[CODE_OF[r.dtype], r.numel, r.trainable_numel] for r in self.layout.regions],
            streams=list(dict.fromkeys(labels)),
            training=None if self.training is None else self.training.describe(),
        )


def everything(records: list[Record], _: Stream) -> list[Record]:
    return records


def image_of(registry: Registry, catalog: Catalog) -> Image:
    """The values of some variables of a registry, in place; and its element masks, where there are any.

    Raises:
        CheckpointError: a dtype that no file can hold.
    """
    for region in registry.layout.regions:
        if region.dtype not in CODE_OF:
            raise CheckpointError(f"the store holds {region.dtype} variables, which safetensors files cannot hold")
    planes = [
        Plane("", VALUES, region.dtype, registry.streams.get(VALUES, region.dtype), everything)
        for region in registry.layout.regions
    ]
    for region in registry.layout.regions:
        if (FROZEN_ELEMENTS, region.dtype) in registry.streams:
            mask = registry.streams.get(FROZEN_ELEMENTS, region.dtype)
            planes.append(Plane(FROZEN_ELEMENTS, FROZEN_ELEMENTS, region.dtype, mask, masked))
    return Image(registry.layout, catalog, planes)


def masked(records: list[Record], mask: Stream) -> list[Record]:
    """Variables with an element that is not trained."""
    return [r for r in records if r.span.spec.trainable and bool(mask.flat(r.span).any())]


def value_views(image: Image) -> dict[str, Tensor]:
    """The values by every name, in their own shapes and in memory of their own; row-major."""
    streams = {plane.region: plane.held for plane in image.planes if plane.stream == VALUES}
    views = {}
    for record in image.records:
        # A clone: torch.save writes the whole storage of a view, which is the store.
        value = streams[record.span.spec.dtype].read(record.span).detach().cpu().contiguous().clone()
        views.update(dict.fromkeys(record.names, value))
    return views


def existing(registry: Registry, stream: str) -> list[tuple[torch.dtype, Stream]]:
    """The regions of a stream that exist."""
    dtypes = [region.dtype for region in registry.layout.regions]
    return [(d, registry.streams.get(stream, d)) for d in dtypes if (stream, d) in registry.streams]
