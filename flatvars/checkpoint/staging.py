"""Tensors of a file laid out as a store would, without one: what converting writes."""

from __future__ import annotations

from functools import partial

import torch

from ..memory.layout import plan_layout
from ..memory.spec import VarSpec
from ..memory.streams import VALUES, Streams
from .blocks import copy_in
from .image import Image, Plane, everything
from .records import Catalog, make_record
from .source import Source


def staged(source: Source, keys: list[str], dtype: torch.dtype | None) -> Image:
    """An image of some tensors of a file, in memory.

    Args:
        keys: Names in the file that are values.
        dtype: That floating tensors are rounded to; None for their own.
    """
    described = source.description.variables if source.description is not None else {}
    specs = []
    for key in keys:
        entry = source.entries[key]
        kind = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
        specs.append(VarSpec(key, entry.shape, kind, trainable=False))
    layout = plan_layout(specs)
    streams = Streams(layout, torch.device("cpu"))
    records = []
    for i, (key, span) in enumerate(zip(keys, layout.spans, strict=True)):
        about = described.get(key, {})
        itemsize = source.entries[key].dtype.itemsize
        copy_in(streams.get(VALUES, span.spec.dtype).view(span), partial(source.read, key), itemsize)
        names = tuple(about.get("names", (key,)))
        trainable, frozen = about.get("trainable", True), about.get("frozen", False)
        records.append(make_record(span, about.get("id", i), names, trainable, frozen, about.get("group", 0)))
    planes = [Plane("", VALUES, r.dtype, streams.get(VALUES, r.dtype), everything) for r in layout.regions]
    return Image(layout, Catalog(records), planes)
