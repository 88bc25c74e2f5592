"""One parameter's state as a dict, whose writes reach the streams."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from ..distributed.shards import is_divided, local_of
from ..memory.piece import Piece
from ..variables.variable import Variable

STEP = "step"


class EntryKeeper(Protocol):
    """Where the entries of an optimizer are kept."""

    def put(self, entry: StateEntry, name: Any, value: Any) -> None:
        """Writes one value of an attached entry."""

    def drop(self, entry: StateEntry, name: Any) -> None:
        """Takes one value out of an attached entry."""

    def fill(self, entry: StateEntry) -> None:
        """Shows what steps have made of an attached entry since it was looked at."""


class StateEntry(dict[Any, Any]):
    """`optimizer.state[parameter]`. One that was taken out of the mapping is a dict like any other.

    Attributes:
        variable: Whose state it is; None once it is detached.
        loose: Names of values that lie in the dict alone.
        lent: Of tensors that were decoded from a stream of a format: their versions when they were.
        counted: Version of the count's view when it was known last that it is a count of steps.
    """

    variable: Variable | None = None
    counted = 0

    def __init__(self, content: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = ()) -> None:
        super().__init__(content)
        self.loose: set[Any] = set(self)
        self.lent: dict[Any, int] = {}
        self._home: weakref.ref[Any] | None = None

    def attach(self, home: EntryKeeper, variable: Variable) -> None:
        """Writes go to a home from now on."""
        self._home, self.variable = weakref.ref(home), variable

    def detach(self) -> None:
        """Its values stay what they are, and writes stay in the dict."""
        self._home, self.variable = None, None
        self.lent = {}

    def show(self, name: Any, value: Any) -> None:
        """Puts a view of what the optimizer holds into the dict."""
        super().__setitem__(name, value)
        self.loose.discard(name)
        self.lent.pop(name, None)
        if name == STEP:
            self.counted = value._version

    def lend(self, name: Any, numbers: Tensor) -> None:
        """Puts a tensor into the dict that shows what the optimizer holds, and is taken back before the next step."""
        self.show(name, numbers)
        self.lent[name] = _version_of(numbers)

    def taken_back(self) -> list[tuple[Any, Tensor]]:
        """Takes what was lent out of the dict; returns what was written to meanwhile."""
        lent, self.lent = self.lent, {}
        pairs = [(name, self[name], version) for name, version in lent.items() if name in self]
        for name, _, _ in pairs:
            super().__delitem__(name)
        return [(name, numbers) for name, numbers, version in pairs if _version_of(numbers) != version]

    @property
    def shows_count(self) -> bool:
        """Whether the count of steps is a view of the optimizer's."""
        return STEP in self and STEP not in self.loose

    @property
    def is_recounted(self) -> bool:
        """Whether somebody wrote to that view since `counted`."""
        return self.shows_count and bool(self[STEP]._version != self.counted)

    def keep(self, name: Any, value: Any) -> None:
        """Puts a value into the dict alone."""
        super().__setitem__(name, value)
        self.loose.add(name)
        self.lent.pop(name, None)

    def hide(self, name: Any) -> None:
        """Takes a value out of the dict alone."""
        super().__delitem__(name)
        self.loose.discard(name)
        self.lent.pop(name, None)

    @property
    def home(self) -> EntryKeeper | None:
        found: EntryKeeper | None = None if self._home is None else self._home()
        return found

    # What a dict offers -------------------------------------------------------------------------------------------

    def __missing__(self, name: Any) -> Any:
        if self.home is not None:
            self.home.fill(self)
            if name in self:
                return self[name]
        raise KeyError(name)

    def __setitem__(self, name: Any, value: Any) -> None:
        home = self.home
        if home is None:
            self.keep(name, value)
        else:
            home.put(self, name, value)

    def __delitem__(self, name: Any) -> None:
        home = self.home
        if name not in self:
            raise KeyError(name)
        if home is None:
            self.hide(name)
        else:
            home.drop(self, name)

    def pop(self, name: Any, *default: Any) -> Any:
        if name not in self and default:
            return default[0]
        value = self[name]
        del self[name]
        return value

    def popitem(self) -> tuple[Any, Any]:
        name = next(reversed(self))
        return name, self.pop(name)

    def clear(self) -> None:
        for name in list(self):
            del self[name]

    def setdefault(self, name: Any, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *others: Any, **values: Any) -> None:
        for name, value in dict(*others, **values).items():
            self[name] = value

    def __ior__(self, other: Any) -> StateEntry:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are plain dicts."""
        return dict, (dict(self),)


def _version_of(numbers: Tensor) -> int:
    """How often somebody wrote there; to what is divided, by operators of its own or through views of what it holds."""
    if is_divided(numbers):
        return numbers._version + local_of(numbers)._version
    return numbers._version + (numbers.local._version if isinstance(numbers, Piece) else 0)
