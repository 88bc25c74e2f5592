"""Matrices of which ranks have parts, each put together on one rank, and dealt out again.

A rank has a run of each matrix's elements in memory order, or nothing: of a range of a flat buffer, or of rows that
FSDP2 gave it. A matrix that lies on one rank stays there. Every other one has an owner: the largest first, each goes to
the rank with the least to do. Two all_to_all messages a step, there and back, carry every element once each way (the
"mega-batch" of Dion's; all ranks know who owns what without a word).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .collectives import exchange


class Run(NamedTuple):
    """What a rank has of a matrix: elements `first` to `stop` in memory order; nothing where both are equal."""

    first: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Matrix:
    """A variable that is worked on as a whole.

    Attributes:
        numel: Its elements.
        work: What it costs, in any unit.
        runs: What each rank has of it; every element is one rank's, or all are on each of some ranks.
        place: Where this rank's run begins in its own buffer.
    """

    numel: int
    work: float
    runs: tuple[Run, ...]
    place: int

    def is_whole(self, rank: int) -> bool:
        return self.runs[rank].numel == self.numel

    @property
    def is_divided(self) -> bool:
        return not any(map(self.is_whole, range(len(self.runs))))


def owners_of(matrices: Sequence[Matrix], world: int) -> dict[int, int]:
    """The rank that works on each divided matrix, by position: the same on all ranks, as it depends on these alone."""
    load = [sum(matrix.work for matrix in matrices if matrix.is_whole(rank)) for rank in range(world)]
    divided = [k for k, matrix in enumerate(matrices) if matrix.is_divided]
    found: dict[int, int] = {}
    for k in sorted(divided, key=lambda k: (-matrices[k].work, k)):
        # Of those with as little to do, the one that has most of it.
        owner = min(range(world), key=lambda rank: (load[rank], -matrices[k].runs[rank].numel, rank))
        found[k] = owner
        load[owner] += matrices[k].work
    return found


class Owners:
    """The exchange of some matrices between the ranks of a process group.

    Args:
        matrices: At least one; the same ones in the same order on all ranks, but for their `place`.
        rank: Of this process in the group.
        group: The process group.
        lanes: Matrices begin on multiples of it where they are put together.

    Attributes:
        here: Positions of the matrices that this rank has all of.
        owned: Positions of those that it puts together.
        starts: Where each of those begins in the buffer for them.
        numel: Elements of that buffer.
        is_needed: Whether any rank puts any together: else there is no message.
        workers: The rank that works on each; the first, where several have all of it.
    """

    def __init__(self, matrices: Sequence[Matrix], rank: int, group: Any, lanes: int = 16) -> None:
        self.matrices, self.rank, self.group = list(matrices), rank, group
        world = len(matrices[0].runs)
        owners = owners_of(matrices, world)
        self.here = [k for k, matrix in enumerate(matrices) if matrix.is_whole(rank)]
        self.owned = [k for k in sorted(owners) if owners[k] == rank]
        self.starts: list[int] = []
        self.numel = 0
        for k in self.owned:
            self.starts.append(self.numel)
            self.numel += -(-matrices[k].numel // lanes) * lanes
        self.is_needed = bool(owners)
        self.workers = [
            owners[k] if k in owners else next(filter(matrix.is_whole, range(world)))
            for k, matrix in enumerate(matrices)
        ]
        self._mine = [[k for k in sorted(owners) if owners[k] == owner] for owner in range(world)]
        self._sent = [sum(matrices[k].runs[rank].numel for k in some) for some in self._mine]
        self._received = [sum(matrices[k].runs[other].numel for k in self.owned) for other in range(world)]

    def _local(self, buffer: Tensor) -> list[Tensor]:
        """This rank's runs, in the order of their owners."""
        pairs = [(self.matrices[k].place, self.matrices[k].runs[self.rank]) for some in self._mine for k in some]
        return [buffer[place : place + run.numel] for place, run in pairs if run.numel]

    def _parts(self, whole: Tensor) -> list[Tensor]:
        """The runs of all ranks in what this one owns, rank by rank."""
        found = []
        for other in range(len(self._received)):
            for start, k in zip(self.starts, self.owned, strict=True):
                run = self.matrices[k].runs[other]
                if run.numel:
                    found.append(whole[start + run.first : start + run.stop])
        return found

    def collect(self, buffer: Tensor, whole: Tensor) -> None:
        """Puts matrices together: from every rank's `buffer` into their owners' `whole`, [numel]; a collective."""
        sent, received = buffer.new_empty(sum(self._sent)), buffer.new_empty(sum(self._received))
        local, parts = self._local(buffer), self._parts(whole)
        _copy(_cut(sent, local), local)
        exchange(received, sent, self._received, self._sent, self.group)
        _copy(parts, _cut(received, parts))

    def spread(self, whole: Tensor, buffer: Tensor) -> None:
        """The way back."""
        sent, received = buffer.new_empty(sum(self._received)), buffer.new_empty(sum(self._sent))
        local, parts = self._local(buffer), self._parts(whole)
        _copy(_cut(sent, parts), parts)
        exchange(received, sent, self._sent, self._received, self.group)
        _copy(local, _cut(received, local))


def _cut(flat: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """A buffer in pieces as long as others."""
    ends = list(accumulate(map(len, likes), initial=0))
    return [flat[begin:end] for begin, end in pairwise(ends)]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """In one launch, where there is anything."""
    if targets:
        torch._foreach_copy_(targets, sources)
