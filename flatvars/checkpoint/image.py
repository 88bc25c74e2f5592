"""An image: all that a checkpoint holds, as flat streams over one layout; of a store in use, or copied to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backend import FormatPart
from ..memory.layout import Layout
from ..memory.streams import Stream
from ..variables.registry import Registry
from .blocks import HostNumbers, HostStream, host_bytes
from .contents import DECODED, Row, Table, tables_of
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

    def labels(self) -> list[str]:
        """Prefixes of its tensors; of values none."""
        names = [part.name for part in self._parts().values()] if self.label else []
        return [f"{self.label}.{name}" if name else self.label for name in names]

    def _parts(self) -> dict[int, FormatPart]:
        """What of its stream goes into files: values as numbers, all else as it is stored."""
        if self.held.format is not None and not self.label:
            return {DECODED: FormatPart("", torch.float32)}
        return {number: part for number, (part, _) in enumerate(self.held.named())}

    def rows(self, number: int, records: list[Record]) -> list[Row]:
        """Its tensors of some variables; `number` is the plane's own."""
        found = []
        for (place, part), label in zip(self._parts().items(), self.labels() or [""], strict=True):
            prefix = label and f"{label}/"
            for r in records:
                items = part.items(r.numel)
                shape = r.span.spec.shape if part.each == 1 else (items,)
                dtype = self.held.dtype_of(r.span) if place == DECODED else part.dtype
                found.append(Row(prefix + r.names[0], dtype, shape, items * dtype.itemsize, number, r, place))
        return found

    def host(self, part: int) -> HostStream | HostNumbers:
        """What its tensors are read from."""
        return HostNumbers(self.held) if part == DECODED else HostStream(self.held, part)


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
        labels = [(plane.labels(), plane.held.buffer.dtype) for plane in self.planes]
        loose = [Row(key, t.dtype, tuple(t.shape), t.nbytes, 0, None) for key, t in self.loose.items()]
        made_of = (limit, labels, chosen, loose)
        kept = self.catalog.tables
        if kept[0] != made_of:
            pairs = enumerate(zip(self.planes, chosen, strict=True))
            rows = [row for number, (plane, records) in pairs for row in plane.rows(number, records)]
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
        streams: dict[tuple[int, int], HostStream | HostNumbers] = {}
        loose = self.loose

        def pieces(row: Row) -> Iterable[memoryview]:
            record = row.record
            if record is not None:
                key = row.plane, row.part
                if key not in streams:
                    streams[key] = self.planes[row.plane].host(row.part)
                return streams[key].pieces(record.span, record.numel, record.row_major)
            return (host_bytes(loose[row.key]),) if row.nbytes else ()

        return pieces

    def describe(self) -> Description:
        """All but the variables, which the catalog keeps as text."""
        labels = [label for plane in self.planes for label in plane.labels()]
        labels += [key.partition("/")[0] for key in self.loose]
        return Description(
            layout=[[CODE_OF[r.dtype], r.numel, r.trainable_numel] for r in self.layout.regions],
            streams=list(dict.fromkeys(labels)),
            training=None if self.training is None else self.training.describe(),
        )
