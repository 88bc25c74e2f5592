"""An image: all that a checkpoint holds, as flat streams over one layout; of a store in use, or copied to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..memory.layout import Layout
from ..memory.streams import Stream
from ..variables.registry import Registry
from .blocks import HostStream, host_bytes
from .contents import Row, Table, tables_of
from .description import Description
from .header import CODE_OF
from .records import Catalog, Record
from .training import Training

Pieces = Callable[[Row], Iterable[memoryview]]
Choose = Callable[[list[Record], Stream], list[Record]]
"""Of records in memory order, those whose part of a stream goes into a file."""


@dataclass
class Plane:
    """One stream of one region.

    Attributes:
        label: Prefix of its tensors in a file; "" for values.
        stream: Its name in the registry.
        region: Dtype of the values beside it.
        held: The stream itself, or a copy.
        choose: What of it goes into a file.
    """

    label: str
    stream: str
    region: torch.dtype
    held: Stream
    choose: Choose


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

    def add(self, registry: Registry, label: str, stream: str, choose: Choose) -> None:
        """Adds the regions of a stream, as far as they exist."""
        for region in registry.layout.regions:
            held = registry.streams.find(stream, region.dtype)
            if held is not None:
                self.planes.append(Plane(label, stream, region.dtype, held, choose))

    def tables(self, limit: int) -> list[Table]:
        """The tensors of each file.

        Args:
            limit: Bytes of a file; a tensor that is larger has one of its own.
        """
        chosen = [plane.choose(self.catalog.by_dtype.get(plane.region, []), plane.held) for plane in self.planes]
        labels = [(plane.label, plane.held.buffer.dtype) for plane in self.planes]
        loose = [Row(key, t.dtype, tuple(t.shape), t.nbytes, 0, None) for key, t in self.loose.items()]
        made_of = (limit, labels, chosen, loose)
        kept = self.catalog.tables
        if kept[0] != made_of:
            rows = []
            for number, ((label, dtype), records) in enumerate(zip(labels, chosen, strict=True)):
                prefix, size = label and f"{label}/", dtype.itemsize
                rows += [Row(prefix + r.names[0], dtype, r.span.spec.shape, r.numel * size, number, r) for r in records]
            # One assignment: a snapshot may be saved by another thread meanwhile.
            kept = made_of, tables_of(rows + loose, limit)
            self.catalog.tables = kept
        tables: list[Table] = kept[1]
        return tables

    def content(self) -> str:
        """What it holds, in words."""
        training = self.training
        parts = [(len(self.catalog.records), "variable")]
        if training is not None:
            parts += [(len(training.optimizers), "optimizer"), (len(training.schedulers), "scheduler")]
        words = [f"{count} {noun}{'s' * (count != 1)}" for count, noun in parts if count or noun == "variable"]
        return ", ".join(words + ["random state"] * (training is not None and training.random is not None))

    def reader(self) -> Pieces:
        """From a row to its tensor's bytes in row-major order, in bounded pieces that stay valid."""
        streams, loose = [HostStream(plane.held) for plane in self.planes], self.loose

        def pieces(row: Row) -> Iterable[memoryview]:
            record = row.record
            if record is not None:
                return streams[row.plane].pieces(record.span, record.numel, record.row_major)
            return (host_bytes(loose[row.key]),) if row.nbytes else ()

        return pieces

    def describe(self) -> Description:
        """All but the variables, which the catalog keeps as text."""
        labels = [plane.label for plane in self.planes if plane.label]
        labels += [key.partition("/")[0] for key in self.loose]
        return Description(
            layout=[[CODE_OF[r.dtype], r.numel, r.trainable_numel] for r in self.layout.regions],
            streams=list(dict.fromkeys(labels)),
            training=None if self.training is None else self.training.describe(),
        )
