"""Variables as files know them: derived from a registry once, while nothing of them changes."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..memory.layout import Span
from ..variables.registry import Registry
from .blocks import is_row_major
from .header import CODE_OF


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
        """As JSON; all its names only where there are several."""
        spec = self.span.spec
        result: dict[str, Any] = {
            "id": self.id,
            "dtype": CODE_OF[spec.dtype],
            "offset": self.span.offset,
            "trainable": self.trainable,
            "frozen": self.frozen,
            "room": spec.has_room,
            "group": self.group,
            "stride": list(spec.stride),
        }
        return {**result, "names": list(self.names)} if len(self.names) > 1 else result


def make_record(span: Span, id: int, names: Iterable[str], trainable: bool, frozen: bool, group: int) -> Record:
    return Record(span, id, tuple(names), trainable, frozen, group, span.numel, is_row_major(span))


@dataclass(eq=False)
class Catalog:
    """Records in creation order, with what follows from them alone.

    Attributes:
        tables: What the last save made of them, and of what, for the next one.
    """

    records: list[Record]
    tables: tuple[Any, Any] = field(default=(None, None), repr=False)

    @cached_property
    def text(self) -> str:
        """JSON: each by its name."""
        return json.dumps({record.name: record.describe() for record in self.records}, separators=(",", ":"))

    @cached_property
    def names(self) -> dict[int, str]:
        """By id."""
        return {record.id: record.name for record in self.records}

    @cached_property
    def by_dtype(self) -> dict[torch.dtype, list[Record]]:
        """In the order of memory."""
        found: dict[torch.dtype, list[Record]] = {}
        for record in sorted(self.records, key=lambda record: (record.span.offset, record.id)):
            found.setdefault(record.span.spec.dtype, []).append(record)
        return found


# Of 10,000 variables, records and the text of their headers take longer than writing them.
_catalogs: weakref.WeakKeyDictionary[Registry, tuple[Any, Catalog]] = weakref.WeakKeyDictionary()


def catalog_of(registry: Registry) -> Catalog:
    """All variables of a registry."""
    # Names and spans move with the generation. Three lists of plain values: one of tuples takes twice as long to make.
    variables = registry.variables
    flags = [v.param.requires_grad for v in variables], [v.frozen for v in variables], [v.group for v in variables]
    now = registry.generation, flags
    known, catalog = _catalogs.get(registry, (None, None))
    if catalog is None or known != now:
        catalog = Catalog([make_record(v.span, v.id, v.names, v.requires_grad, v.frozen, v.group) for v in variables])
        _catalogs[registry] = now, catalog
    return catalog
