"""Variables as files know them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..memory.layout import Span
from ..variables.variable import Variable
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


@dataclass(eq=False)
class Catalog:
    """Records in creation order, with what follows from them alone: saves of the same variables derive it once.

    Attributes:
        kept: What the last save made of them, for the next one; see `contents.py`.
    """

    records: list[Record]
    kept: tuple[Any, Any] = (None, None)

    @cached_property
    def text(self) -> str:
        """JSON: each by its name."""
        return json.dumps({record.name: record.describe() for record in self.records}, separators=(",", ":"))

    @cached_property
    def by_dtype(self) -> dict[torch.dtype, list[Record]]:
        """In the order of memory."""
        found: dict[torch.dtype, list[Record]] = {}
        for record in sorted(self.records, key=lambda record: (record.span.offset, record.id)):
            found.setdefault(record.span.spec.dtype, []).append(record)
        return found
