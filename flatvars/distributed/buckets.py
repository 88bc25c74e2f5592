"""Buckets: the pieces of flat gradients that are averaged while a backward pass runs. Integers only.

A bucket lies in one rank's range, and goes to that rank alone. It is cut where variables begin and end; a variable that
crosses a border between ranks lies in a bucket on either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..memory.layout import Layout
from ..memory.ranks import GRAIN


@dataclass(frozen=True)
class Bucket:
    """Elements `start` to `stop` of a region.

    Attributes:
        owner: The rank whose range they are of.
        members: Positions, among the spans that were given, of those that lie in it, all or a part of each.
    """

    region: torch.dtype
    start: int
    stop: int
    owner: int
    members: tuple[int, ...]


def cut_buckets(layout: Layout, chosen: Sequence[int], limits: Mapping[torch.dtype, int]) -> list[Bucket]:
    """The buckets of some spans in reverse memory order, which is about that in which a backward pass ends with them.

    Args:
        layout: Of several ranks.
        chosen: Indices of spans with room; nothing is sent of what lies between them.
        limits: The most elements of a bucket, for each region; one of a larger variable holds that variable alone.
    """
    assert layout.ranks is not None
    found: list[Bucket] = []
    for region in layout.regions:
        spans = [(layout.spans[i], k) for k, i in enumerate(chosen)]
        members = sorted(
            (s.offset, s.offset + s.numel, k) for s, k in spans if s.spec.dtype == region.dtype and s.numel
        )
        for owner in range(layout.ranks.world):
            first, last = layout.share(region.dtype, owner)
            pieces = [(max(a, first), min(b, last), k) for a, b, k in members if max(a, first) < min(b, last)]
            found += _filled(region.dtype, owner, pieces, limits[region.dtype])
    return found[::-1]


def _filled(region: torch.dtype, owner: int, pieces: Sequence[tuple[int, int, int]], limit: int) -> list[Bucket]:
    """Neighbors together, as many as may be; between neighbors there is less than a grain of padding."""
    found: list[Bucket] = []
    for start, stop, k in pieces:
        last = found[-1] if found else None
        if last is not None and start - last.stop < GRAIN and stop - last.start <= limit:
            found[-1] = Bucket(region, last.start, stop, owner, (*last.members, k))
        else:
            found.append(Bucket(region, start, stop, owner, (k,)))
    return found
