"""Values of a checkpoint as the content of another: read from the one while the other is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..memory.layout import plan_layout
from ..memory.spec import VarSpec
from .blocks import host_bytes
from .contents import Content, Pieces, Row, Table, tables_of
from .description import Description
from .header import CODE_OF
from .records import Catalog, make_record
from .source import Source


class Converted(Content):
    """Some tensors of a source, laid out as a store would.

    Args:
        keys: Names in the source, of values.
        dtype: That floating tensors are rounded to; None for their own.
    """

    def __init__(self, source: Source, keys: Sequence[str], dtype: torch.dtype | None) -> None:
        self._source = source
        described = source.description.variables if source.description is not None else {}
        specs = []
        for key in keys:
            entry = source.entries[key]
            kind = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
            specs.append(VarSpec(key, entry.shape, kind, trainable=False))
        self.layout = plan_layout(specs)
        records = []
        for i, (key, span) in enumerate(zip(keys, self.layout.spans, strict=True)):
            about = described.get(key, {})
            flags = about.get("trainable", True), about.get("frozen", False), about.get("group", 0)
            records.append(make_record(span, about.get("id", i), about.get("names", (key,)), *flags))
        self._catalog = Catalog(records)

    def tables(self, limit: int) -> list[Table]:
        rows = []
        for records in self._catalog.by_dtype.values():
            for r in records:
                dtype = r.span.spec.dtype
                rows.append(Row(r.name, dtype, r.span.spec.shape, r.numel * dtype.itemsize, 0, r))
        return tables_of(rows, limit)

    def reader(self) -> Pieces:
        def pieces(row: Row) -> Iterable[memoryview]:
            assert row.record is not None
            return (host_bytes(piece.to(row.dtype)) for piece in self._source.pieces(row.record.span.spec.name))

        return pieces

    def describe(self) -> Description:
        return Description(layout=[[CODE_OF[r.dtype], r.numel, r.trainable_numel] for r in self.layout.regions])

    @property
    def variables(self) -> str:
        return self._catalog.text
