"""Ratios on a machine whose pace drifts: two peers are compared round by round, and the median of that is the ratio."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Times = Sequence[float | None]
"""Milliseconds by round; None where a peer had no turn."""


@dataclass(frozen=True)
class Ratio:
    """Of their time to ours: above 1 where ours is faster.

    Attributes:
        middle: The median over rounds in which both had a turn; without one, the ratio of the medians.
        low, high: Quartiles over these rounds; None without two of them.
    """

    middle: float
    low: float | None = None
    high: float | None = None


def ratio(ours: Times, theirs: Times) -> Ratio | None:
    """Compares two peers of a cell; None if one has no time at all.

    A machine that slows down for a second slows the round of both, so that a quotient of the same round keeps its
    value where each median depends on how many slow rounds its peer happened to get. Lists that memory does not hold
    all at once are timed in batches, and peers of different batches share no round.
    """
    pairs = [b / a for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    if len(pairs) >= 2:
        low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
        return Ratio(middle, low, high)
    if pairs:
        return Ratio(pairs[0])
    mine, other = ([one for one in times if one is not None] for times in (ours, theirs))
    return Ratio(statistics.median(other) / statistics.median(mine)) if mine and other else None
