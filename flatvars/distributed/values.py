"""Bringing the values of all ranks together, however they are stored."""

from __future__ import annotations

import torch

from ..memory.layout import Layout
from ..memory.streams import Stream
from .collectives import add_up, gather_shares
from .group import Group

# Dtypes that no collective knows, and others of their size: they are copied, not computed with.
_SENT_AS = {torch.int16: torch.bfloat16}


def gather_values(held: Stream, layout: Layout, region: torch.dtype, group: Group) -> None:
    """Fills the trainable part of a region's values with what each rank has in its own range; a collective.

    Parts of a format that have an item for each element go the same way. Those with one for each unit of 128 are added
    up, as ranges hold different numbers of units: the others add 0.
    """
    start, stop = layout.share(region)
    end = layout.region_of[region].trainable_numel
    for part, buffer in held.named():
        if part.units:
            mine = layout.unit_at(region, start), layout.unit_at(region, stop)
            buffer[: mine[0]] = 0
            buffer[mine[1] :] = 0
            add_up(buffer, group.process_group)
            continue
        flat = buffer.view(_SENT_AS.get(buffer.dtype, buffer.dtype))
        gather_shares(flat[:end], flat[start:stop], group.process_group)


def send_values(held: Stream, elements: tuple[int, int], units: tuple[int, int], group: Group) -> None:
    """Makes elements of a region's values, and units of what is stored beside them, the first rank's; a collective."""
    for part, buffer in held.named():
        first, stop = units if part.units else elements
        flat = buffer.view(_SENT_AS.get(buffer.dtype, buffer.dtype))
        if len(flat[first:stop]):
            group.send_from_first(flat[first:stop])
