"""Steps whose gradients are as those of the step before, but for what they hold and where they lie: nearly all steps.

One call then tells the addresses of all of them (`kernels/looks.py`), and none becomes an object of Python's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter, is_
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..backend import FEWEST, Looks, Sources

_grad, _version, _address = attrgetter("grad"), attrgetter("_version"), Tensor.data_ptr


class Left(Sequence[Tensor | None]):
    """What lies in `.grad` of some parameters, read where it is asked for."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params

    def __len__(self) -> int:
        return len(self._params)

    @overload
    def __getitem__(self, index: int) -> Tensor | None: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor | None]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor | None] | None:
        return Left(self._params[index]) if isinstance(index, slice) else self._params[index].grad

    def at(self, places: Iterable[int]) -> list[Tensor | None]:
        """Those of some parameters, without a turn of Python for each."""
        return list(map(_grad, map(self._params.__getitem__, places)))


class Repeats:
    """What the launches of the last step were told of the gradients in `.grad`.

    Args:
        params: Of some plans.
        parts: Each with a plan, and the order of its variables among the parameters.
    """

    def __init__(self, params: Sequence[Tensor], parts: Sequence[Any]) -> None:
        self._params, self._parts = params, parts
        self._looks: Looks | None = None  # made at the first step, with all that it needs
        self._may_look = True
        self._told: tuple[list[Sources], list[bool], list[int]] | None = None
        self._given: tuple[npt.NDArray[np.int64], list[Sources], list[bool], list[int]] | None = None

    def note(self, sources: list[Sources], touched: list[bool]) -> None:
        """Launches were told these, of the gradients in `.grad`."""
        self._told = None
        if not self._may_look or any(part.plan.addresses.has_copies for part in self._parts):
            return
        self._looks = self._looks or Looks(self._params, of_grad=True)
        if not self._looks.note():
            self._may_look = self._looks.can_tell
            return
        self._told = sources, touched, self._uploads()

    def take(self) -> tuple[list[Sources], list[bool]] | None:
        """What launches must be told now, and which variables have a gradient; None if that must be found out."""
        if self._told is None or self._looks is None or self._told[2] != self._uploads():
            return None
        found = self._looks.moved()
        if found is None:
            self._told = None
            return None
        anywhere_else, addresses = found
        if not anywhere_else and all(part.plan.addresses.repeats for part in self._parts):
            return self._told[:2]
        sources = [part.plan.addresses.moved(_picked(part, addresses)) for part in self._parts]
        self._told = sources, self._told[1], self._uploads()
        return self._told[:2]

    def note_given(self, sources: list[Sources], touched: list[bool], given: Sequence[Tensor | None]) -> None:
        """Launches were told these, of gradients that somebody handed over; nothing of them is held."""
        rows = None if any(part.plan.addresses.has_copies for part in self._parts) else _looked_at(given)
        self._given = None if rows is None else (rows, sources, touched, self._uploads())

    def take_given(self, given: Sequence[Tensor | None]) -> tuple[list[Sources], list[bool]] | None:
        """The same as `take`, of gradients that are handed over."""
        known, self._given = self._given, None
        if known is None or known[3] != self._uploads():
            return None
        rows, (noted, sources, touched, _) = _looked_at(given), known
        if rows is None or not np.array_equal(rows[:, 1:], noted[:, 1:]):
            return None
        addresses = rows[:, 0]
        if not (np.array_equal(addresses, noted[:, 0]) and all(part.plan.addresses.repeats for part in self._parts)):
            sources = [part.plan.addresses.moved(_picked(part, addresses)) for part in self._parts]
        self._given = rows, sources, touched, self._uploads()
        return sources, touched

    def _uploads(self) -> list[int]:
        """Counters that tell whether the tables were told something else since."""
        return [part.plan.addresses.uploads for part in self._parts]


def _looked_at(given: Sequence[Tensor | None]) -> npt.NDArray[np.int64] | None:
    """How gradients look, a row each; None where there are few, one is missing, or it cannot be told."""
    if len(given) < FEWEST:
        return None
    return Looks(given, are_grads=True).look()  # type: ignore[arg-type]  # of None, it tells nothing


def _picked(part: Any, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return items if part.in_order else items[part.order]


class HeldViews:
    """Views that lie in `.grad` of their parameters, and where they lie.

    Attributes:
        views: In the order of the parameters.
        all_moved: Whether at the last look each was of another version than before, if that was asked and could be
            told without a turn for each; False says nothing.
    """

    def __init__(self, params: Sequence[Tensor], views: Sequence[Tensor]) -> None:
        self.views = list(views)
        self.all_moved = False
        self._params = params
        self._holders, self._held = Looks(params), Looks(self.views)
        self._addresses = np.array(self._lie_at(), dtype=np.int64)

    def are_there(
        self, versions: npt.NDArray[np.int64] | None = None, before: npt.NDArray[np.int64] | None = None
    ) -> bool:
        """Whether they lie in `.grad` still, and where they lay: `.grad.data = ...` moves one.

        Args:
            versions: [views] to write the version of each to, if all are there.
            before: [views] versions that `all_moved` compares these with.
        """
        there, self.all_moved = self._holders.hold(self._held, self._addresses, versions, before)
        if there:
            return True
        if not all(map(is_, map(_grad, self._params), self.views)) or self._lie_at() != self._addresses.tolist():
            return False
        if versions is not None:
            versions[:] = list(map(_version, self.views))
        return True

    def _lie_at(self) -> list[int]:
        return list(map(_address, self.views))
