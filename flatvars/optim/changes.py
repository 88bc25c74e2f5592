"""What changed in param groups since the last step: most often nothing, or a schedule turned the learning rate.

Told by identity, in C's loops: no number is compared, no tensor read, and there is no call of Python's for each group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from math import isfinite
from operator import is_
from typing import Any

from ..backend import is_fixed_group


class Change(Enum):
    """Of param groups."""

    NONE = "they hold the very same"
    RATE = "some have another finite learning rate, a float, and else the very same"
    ANY = "something else may have changed"


class GroupChanges:
    """The entries of param groups as the last step found them; parameters are followed by the membership."""

    def __init__(self) -> None:
        self._known: list[tuple[list[str], list[Any], int | None]] | None = None

    def look(self, groups: Sequence[Mapping[str, Any]]) -> Change:
        """What changed since they were noted. If something did, that is forgotten: they are to be noted once more.

        A step that is broken off may have uploaded some of the new numbers, and these may be set back before the next.
        """
        found = self._compared(groups)
        if found is not Change.NONE:
            self._known = None
        return found

    def _compared(self, groups: Sequence[Mapping[str, Any]]) -> Change:
        known = self._known
        if known is None or len(known) != len(groups):
            return Change.ANY
        change = Change.NONE
        for group, (names, values, rate) in zip(groups, known, strict=True):
            now = list(group.values())
            if len(now) != len(values) or list(group) != names:
                return Change.ANY
            if not all(map(is_, now, values)):
                if rate is None:
                    return Change.ANY
                turned, now[rate] = now[rate], values[rate]
                if type(turned) is not float or not isfinite(turned) or not all(map(is_, now, values)):
                    return Change.ANY
                change = Change.RATE
        return change

    def note(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """A step has used them as they are; what may change in place is not noted, and changed at every look."""
        if not all(map(is_fixed_group, groups)):
            self._known = None
            return
        self._known = []
        for group in groups:
            names = list(group)
            self._known.append((names, list(group.values()), names.index("lr") if "lr" in group else None))
