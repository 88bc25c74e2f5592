"""Units of a norm that borders between shards cut: put together, so that a norm is made of what one process has.

A unit is 128 elements, counted from the start of the whole variable. A shard of rows may begin and end inside of one.
Each rank then takes the units that are its own in one launch, which leaves the others out; the elements of those are
added up over the ranks, each element in its place beside zeros of the others, and one more launch takes their sums.

Exchanged: 512 B for each unit that is cut. Rows of a multiple of 128 elements cut none, and then there is no message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend import CODE_OF, UNIT, Segments, Sources, make_plan, unit_counts
from ..distributed.collectives import add_up
from ..distributed.shards import rows_of
from ..errors import FlatvarsError
from ..variables.variable import Variable
from .plans import Part

_SIZES = tuple(dtype.itemsize for dtype in CODE_OF)


class CutPiece(NamedTuple):
    """What this rank has of a cut unit.

    Attributes:
        variable: Its position in the part.
        first, stop: Elements of the shard.
        place: Of the first, where all cut units lie one behind the other.
    """

    variable: int
    first: int
    stop: int
    place: int


class _Rows(NamedTuple):
    """How the rows of a variable are divided: over which group, this rank in it, and who has which elements."""

    group: Any
    rank: int
    runs: list[tuple[int, int]]


def rows_if_any(variable: Variable) -> _Rows | None:
    """None where it is whole on every rank, or divided in another way: its units are then the shard's."""
    try:
        found = rows_of(variable.whole)
    except FlatvarsError:
        return None
    return None if found is None else _Rows(*found)


def unit_weights(segments: Segments, shares: Sequence[float]) -> Tensor:
    """What each unit of a launch counts, float64 [units], given that of each variable; 0 where nothing lies here."""
    counted = [share if numel else 0.0 for share, numel in zip(shares, segments.numels, strict=True)]
    return torch.tensor(counted, dtype=torch.float64).repeat_interleave(torch.from_numpy(unit_counts(segments)))


def weighted_sum(squares: Tensor, weights: Tensor) -> Tensor:
    """float64 []. What counts nothing may be anything: the unit of a variable without elements is not written."""
    return torch.where(weights != 0.0, squares.to(torch.float64) * weights, 0.0).sum()


class CutUnits:
    """The norm of one part of some plans over shards.

    Args:
        part: Of the plans.
        variables: In its order.
        shares: Of each: what a square that lies here counts in the sum over all ranks.

    Attributes:
        numel: Elements of all cut units; 0 if no border cuts any.
    """

    def __init__(self, part: Part, variables: Sequence[Variable], shares: Sequence[float]) -> None:
        self.part, device = part, part.plan.device
        segments: Segments = part.plan.segments
        self._pieces: list[CutPiece] = []
        self._group: Any = None
        self.numel, shifts, lengths = 0, list(segments.firsts), list(segments.numels)
        weights: list[float] = []  # of the cut units
        for k, one in enumerate(map(rows_if_any, variables)):
            self._group = one.group if one is not None and self._group is None else self._group
            if one is None or one.group is not self._group:
                continue  # of a second mesh: its units are those of the shard
            (first, stop), whole = one.runs[one.rank], math.prod(variables[k].whole.shape)
            begin, end = _own(first, stop, whole)
            shifts[k] += begin - first
            lengths[k] = end - begin
            for unit in sorted({border // UNIT for _, border in one.runs if border % UNIT and border < whole}):
                low, high = max(first, unit * UNIT), min(stop, (unit + 1) * UNIT)
                if low < high:
                    self._pieces.append(CutPiece(k, low - first, high - first, self.numel + low - unit * UNIT))
                self.numel += UNIT
                weights.append(shares[k] if one.rank == 0 else 0.0)
        self._inside = self._plan(segments, segments.starts, lengths)
        self._shifts = torch.tensor(shifts, dtype=torch.int64).to(device)
        self._sizes = torch.tensor(_SIZES, dtype=torch.int64).to(device)
        self._weights = unit_weights(self._inside.segments, shares).to(device)
        self._cut_weights = torch.tensor(weights, dtype=torch.float64).to(device)
        self._cut = self._plan(segments, (0,), [max(self.numel, 1)])

    def _plan(self, segments: Segments, starts: tuple[int, ...], lengths: list[int]) -> Any:
        """Of vectors, for norms alone."""
        device, count = self.part.plan.device, len(starts)
        shapes = tuple((length,) for length in lengths)
        names, rows = segments.names[:count], (0,) * count
        flat = Segments(names, starts, shapes, ((1,),) * count, starts, rows, segments.dtype)
        norm, sums = torch.zeros((), dtype=flat.compute_dtype, device=device), torch.zeros(1, dtype=torch.float64)
        return make_plan(flat, device, norm, sums.to(device), 0, None)

    def squares(self, source: Sources, grads: Sequence[Tensor | None], grad_scale: Tensor | None) -> Tensor:
        """The sum of squares of what this rank counts, float64 []; a collective, where `numel` is not 0.

        Args:
            source: The gradients, as launches are told them.
            grads: The same, of each variable in the order of the part.
        """
        table = source.table.clone()
        there = table[:, 0] != 0
        table[:, 0] += torch.where(there, self._shifts * self._sizes[table[:, 1]], 0)
        self._inside.norm_(Sources(table, source.touched, source.dtype), grad_scale)
        total = weighted_sum(self._inside.launches.squares(), self._weights)
        cut = torch.zeros(self.numel, dtype=self._cut.segments.compute_dtype, device=table.device)
        chosen = [(piece, grad) for piece in self._pieces if (grad := grads[piece.variable]) is not None]
        if chosen:
            targets = [cut[p.place : p.place + p.stop - p.first] for p, _ in chosen]
            torch._foreach_copy_(targets, [grad.reshape(-1)[p.first : p.stop] for p, grad in chosen])
        add_up(cut, self._group)
        self._cut.norm_(self._cut.gathered(cut, [True]), grad_scale)
        return total + weighted_sum(self._cut.launches.squares(), self._cut_weights)


def _own(first: int, stop: int, whole: int) -> tuple[int, int]:
    """What a rank has of units that are its own, of elements `first` to `stop` of a variable of `whole`."""
    begin = -(-first // UNIT) * UNIT
    end = stop if stop == whole else stop // UNIT * UNIT
    return (begin, end) if begin < end else (first, first)
