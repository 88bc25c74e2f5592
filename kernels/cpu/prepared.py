"""Launches that are made again of the same memory and numbers, as those of nearly every step: their records are kept.

A record has some fifty words. To gather them anew takes ten times as long as the launch of a small variable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..addresses import Sources
from ..launches import Tables
from .record import CHUNK, COUNT, DONE, NEXT, Words, address_of_row
from .threads import POOL, SHARED_FROM, callable_of

KEPT = 2
"""Launches of one plan that are kept: one of its own, and one of a companion's."""


class Prepared:
    """One launch, to be made any number of times.

    Args:
        code: Machine code of `(record, leader) -> finished`.
        size: Bytes that it moves, which decide how many threads share it.
        beside: What the record holds addresses of, and nobody else keeps.
    """

    def __init__(self, code: Any, record: Words, size: int, *beside: Any) -> None:
        self._function, self._record, self._size, self._beside = callable_of(code), record, size, beside
        self._address = address_of_row(record)
        record[CHUNK] = record[COUNT]

    def run(self, moved: Sequence[tuple[int, int]] = ()) -> None:
        """See `Launcher.run`."""
        record = self._record
        for position, word in moved:
            record[position] = word
        record[NEXT] = record[DONE] = 0
        if self._size < SHARED_FROM:
            self._function(self._address, 1)
        else:
            POOL.launch(self._function, record, self._size)


class Launcher:
    """The last launches of one kind of a plan."""

    def __init__(self) -> None:
        self._known: list[tuple[tuple[Any, ...], Prepared]] = []

    def run(
        self, given: tuple[Any, ...], prepare: Callable[[], Prepared], moved: Sequence[tuple[int, int]] = ()
    ) -> Prepared:
        """Makes a launch.

        Args:
            given: All that its record is made of: addresses and numbers, none of them an object whose memory may move.
            prepare: Makes the record, of a launch that is not known.
            moved: Positions in the record of what is another in every launch, and the words to be there.

        Returns:
            The launch, which may be run again.
        """
        for known, prepared in self._known:
            if known == given:
                prepared.run(moved)
                return prepared
        prepared = prepare()
        self._known = [(given, prepared), *self._known[: KEPT - 1]]
        prepared.run(moved)
        return prepared


def read_of(tables: Tables, sources: Sources, written: Tensor | None) -> tuple[Any, ...]:
    """The beginning of what a launch is given: where gradients are found."""
    frozen = None if tables.frozen is None else tables.frozen.data_ptr()
    return sources.table.data_ptr(), sources.dtype, written is None, frozen
