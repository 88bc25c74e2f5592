"""`optimizer.state`, alive as in torch.optim: what is written there is what the next step uses.

An entry is a dict of views of the streams and of the counts. A parameter has one from its first step on, or from when
somebody asked for it or wrote one. What fits no stream lies loose in the entry, and goes where it belongs as soon as it
can: the state of a variable that has no room yet, or of a parameter that the store does not hold yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from ..gradients.attached import gradients_of
from ..variables.registry import variable_of
from .entry_following import EntryFollowing
from .state_values import identity_of


class Entries(EntryFollowing, MutableMapping[Any, Any]):
    """Parameter to its state. Looking at what is not there yet waits for the device, which counts the steps."""

    def __getitem__(self, key: Any) -> Any:
        """As torch's, a key that is not there gets an empty entry."""
        variable = self._variable(key)
        if variable is None:
            return self._others.setdefault(identity_of(key), (key, {}))[1]
        entry = self._entries.get(variable.id) or self._attached(variable)
        if self._lacks(entry, variable):
            self.fill(entry)
        return entry

    def __setitem__(self, key: Any, state: Any) -> None:
        variable = self._variable(key)
        if variable is None:
            self._free(state)
            self._others[identity_of(key)] = key, state
        elif self._entries.get(variable.id) is not state:
            content = dict(state)
            self._take_out(variable, keep=True)
            self.replace({variable: content})
            self._attached(variable)  # an empty one, too

    def _free(self, state: Any) -> None:
        """Gives tensors memory of their own that lie in the optimizer's, which may be another variable's by and by."""
        if isinstance(state, MutableMapping):
            for name, value in state.items():
                if isinstance(value, Tensor) and self._optimizer.states.holds(value):
                    state[name] = value.clone()

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError("the parameter has no state")
        variable = self._variable(key)
        if variable is None:
            del self._others[identity_of(key)]
            return
        entry = self._entries.pop(variable.id, None)
        if entry is not None:
            entry.detach()
        # What somebody holds of it stays what it is until the next step.
        self._dropped[variable.id] = variable, None if entry is None else weakref.ref(entry)

    def __contains__(self, key: object) -> bool:
        variable = self._variable(key)
        if variable is None:
            return identity_of(key) in self._others
        return variable.id in self._entries or self._has_stepped(variable)

    def __iter__(self) -> Iterator[Any]:
        found: list[Any] = [variable.whole for variable in self._present()]
        return iter(found + [key for key, _ in self._others.values()])

    def __len__(self) -> int:
        return len(self._present()) + len(self._others)

    def __bool__(self) -> bool:
        """Whether there is any state. If not, `.grad` is None now where there is no gradient, views or not.

        torch.distributed.checkpoint asks, and makes the state of a new optimizer by a step with zeros: but only if it
        finds no `.grad` next.
        """
        if len(self) or self._optimizer.states.is_partial:
            return True
        gradients_of(self._optimizer.states.registry).hide_empty()
        return False

    def get(self, key: Any, default: Any = None) -> Any:
        if key not in self:  # and `self[key]` would make one
            return default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if key not in self and default:
            return default[0]
        if key not in self:
            raise KeyError("the parameter has no state")
        value = self[key]
        del self[key]
        return value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = {} if default is None else default
        return self[key]

    def clear(self) -> None:
        for key in list(self):
            del self[key]

    def copy(self) -> dict[Any, Any]:
        return dict(self.items())

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def adopt(self) -> None:
        """State that was set for parameters before the store held them, or before they were in a group."""
        states = self._optimizer.states
        for identity, (key, state) in list(self._others.items()):
            found = variable_of(key) if isinstance(key, Tensor) and isinstance(state, Mapping) else None
            if found is not None and found[0] is states.registry and found[1].id in states.slots:
                del self._others[identity]
                self._take_out(found[1], keep=True)
                self.replace({found[1]: state})

    def assign(self, content: Mapping[Any, Any]) -> None:
        """`optimizer.state = content`."""
        if content is self:
            return
        items = list(content.items())
        if self._optimizer.states.slots or self._others:
            self.clear()
        for key, state in items:
            self[key] = state
