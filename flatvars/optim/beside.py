"""State of a variable that lies in no stream: tensors of shapes of their own, which `optimizer.state` shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..memory.streams import own_storage
from ..variables.variable import Variable
from .entry import StateEntry

EntryOf = Callable[[Variable], StateEntry]


class Beside:
    """What is kept of one variable.

    Args:
        variable: Whose it is.
        kept: By name; each a part of what is kept of several, in one storage.
    """

    def __init__(self, variable: Variable, kept: Mapping[str, Tensor]) -> None:
        self.variable = variable
        self._views = {name: own_storage(x.reshape(-1)).view(x.shape) for name, x in kept.items()}
        self._entry: StateEntry | None = None

    def bind(self, entry_of: EntryOf) -> None:
        """Makes what `optimizer.state` says of the variable what is gone on from, and shows it there.

        Raises:
            ValueError: a tensor of another shape was written there.
        """
        if self._entry is not None and self._entry.home is not None and self._is_shown(self._entry):
            return
        entry = entry_of(self.variable)
        for name, view in self._views.items():
            found = entry.get(name)
            if isinstance(found, Tensor) and found.shape != view.shape:
                raise ValueError(
                    f"{name!r} of variable {self.variable.name!r} has shape {tuple(found.shape)}, but the optimizer "
                    f"keeps {tuple(view.shape)} of it: set optimizer.state[parameter][{name!r}] to a tensor of that "
                    "shape, or delete the entry; nothing was stepped"
                )
        for name, view in self._views.items():
            found = entry.get(name)
            view.copy_(found) if isinstance(found, Tensor) else view.zero_()
            entry.keep(name, view)
        self._entry = entry

    def _is_shown(self, entry: StateEntry) -> bool:
        """Whether nobody has put something else in the place of these views."""
        return all(dict.get(entry, name) is view for name, view in self._views.items())
