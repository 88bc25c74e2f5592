"""The entries of an optimizer: which variables have one, and what it shows."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ..variables.registry import variable_of
from ..variables.variable import Variable
from .entry import STEP, StateEntry
from .keeper import Keeper
from .rows import is_set
from .state_values import identity_of, show_state, wide, write_first


class EntryList:
    """Entries by variable; those of parameters that the store does not hold lie apart, as they were given."""

    def __init__(self, optimizer: Keeper) -> None:
        # Weak: the optimizer owns this object.
        self._reference: weakref.ref[Keeper] = weakref.ref(optimizer)
        self._entries: dict[int, StateEntry] = {}  # by variable id
        self._others: dict[Any, tuple[Any, Any]] = {}  # of what the store does not hold, by identity
        self._dropped: dict[int, tuple[Variable, weakref.ref[StateEntry] | None]] = {}
        self._emptied: dict[int, tuple[Variable, set[Any]]] = {}  # names that were deleted, not yet zeros
        self._version = 0

    @property
    def _optimizer(self) -> Keeper:
        optimizer = self._reference()
        if optimizer is None:
            raise ReferenceError("the optimizer of this state is gone")
        return optimizer

    @property
    def waits(self) -> bool:
        """Whether there is state of parameters that the store may hold by now."""
        return bool(self._others)

    def _variable(self, key: Any) -> Variable | None:
        """The variable of a parameter, if the optimizer keeps state for it."""
        if not isinstance(key, Tensor):
            return None
        states = self._optimizer.states
        found = variable_of(key)
        if found is None or found[0] is not states.registry:
            return None
        if found[1].id not in states.slots or identity_of(key) in self._others:
            self._optimizer.follow()
        return found[1] if found[1].id in states.slots else None

    def _has_stepped(self, variable: Variable) -> bool:
        optimizer = self._optimizer
        rule = optimizer.rule_for(variable)
        if variable.id in self._dropped or not (optimizer.names_of(variable) or rule.keeps_step):
            return False
        return (
            rule.early
            or optimizer.states.is_partial
            or is_set(float(optimizer.states.steps[optimizer.states.slots[variable.id]]))
        )

    def _present(self) -> list[Variable]:
        """Variables with an entry: those of the param groups first. Waits for the device, once."""
        optimizer = self._optimizer
        optimizer.follow()
        states, common = optimizer.states, None if optimizer.several else optimizer.kept_rule()
        counts = states.steps.tolist()
        ordered = {v.id: v for v in (*optimizer.members(), *states.variables)}

        def stepped(v: Variable) -> bool:
            rule = common or optimizer.rule_for(v)
            return (
                (rule.early or states.is_partial or is_set(counts[states.slots[v.id]]))
                and v.id not in self._dropped
                and (rule.keeps_step or bool(optimizer.names_of(v)))
            )

        return [v for v in ordered.values() if v.id in self._entries or stepped(v)]

    def _attached(self, variable: Variable) -> StateEntry:
        entry = self._entries.get(variable.id)
        if entry is None:
            entry = self._entries[variable.id] = StateEntry()
            entry.attach(self, variable)
        return entry

    def _lacks(self, entry: StateEntry, variable: Variable) -> bool:
        """Whether something that a variable may have is not in its entry."""
        optimizer, names = self._optimizer, self._optimizer.names_of(variable)
        if optimizer.states.is_partial and any(name not in entry for name in optimizer.loose_of(variable)):
            return True
        if not names:
            return STEP not in entry and optimizer.rule_for(variable).keeps_step
        return any(dict.get(entry, name) is None for name in names)

    def fill(self, entry: StateEntry) -> None:
        """Shows the views of a variable that has stepped."""
        variable = entry.variable
        if variable is not None and variable.id not in self._emptied and self._has_stepped(variable):
            self._show(entry, variable)

    def _show(self, entry: StateEntry, variable: Variable) -> None:
        optimizer = self._optimizer
        names = optimizer.names_of(variable)
        if not variable.spec.has_room:
            return
        if optimizer.rule_for(variable).keeps_step and STEP not in entry:
            entry.show(STEP, optimizer.states.step_of(variable))
        rule = optimizer.rule_for(variable)
        if rule.init:
            self._begin(variable)
        for name, stream in zip(rule.states, self._streams(variable), strict=True):
            if name in names and dict.get(entry, name) is None:
                show_state(entry, name, stream, variable)
        for name in rule.own:
            if name not in entry:
                entry.show(name, optimizer.states.scalar_of(variable, name))
        if optimizer.states.is_partial:  # as what lies in streams, from the start
            dtype = torch.float64 if variable.dtype == torch.float64 else torch.float32
            for name, shape in optimizer.loose_of(variable).items():
                if name not in entry:
                    entry.keep(name, torch.zeros(shape, dtype=dtype, device=variable.param.device))

    @torch.no_grad()
    def _begin(self, variable: Variable) -> None:
        """Shows the initial values of a variable that took no step, and whose state nobody has set."""
        optimizer, states = self._optimizer, self._optimizer.states
        count = float(states.steps[states.slots[variable.id]])
        if is_set(count):
            return
        rule = optimizer.rule_for(variable)
        for name, stream in zip(rule.states, self._streams(variable), strict=True):
            if name in rule.init:
                write_first(optimizer, variable, name, stream)
        for name in rule.own:
            states.scalar_of(variable, name).copy_(wide(optimizer.first_value(variable, name)))
        states.note_set([variable])  # whoever looks may write

    def _streams(self, variable: Variable) -> Any:
        names, states = self._optimizer.rule_for(variable).states, self._optimizer.states
        return states.streams(variable.dtype, names, states.is_apart(variable, names))

    def shown(self) -> dict[int, StateEntry]:
        """All entries, by variable id; one that was asked for before the variable's first step is empty, as torch's."""
        found = {}
        optimizer, present, states = self._optimizer, self._present(), self._optimizer.states
        common = None if optimizer.several else optimizer.kept_rule()
        counts = states.steps.tolist()
        for variable in present:
            entry = found[variable.id] = self._attached(variable)
            missing = self._lacks(entry, variable)
            early = (common or optimizer.rule_for(variable)).early or states.is_partial
            has_state = early or is_set(counts[states.slots[variable.id]])
            if missing and variable.id not in self._dropped and has_state:
                self._show(entry, variable)
        return found

    def other(self, param: Tensor) -> Any:
        """The state of a parameter that the store does not hold."""
        return self._others.get(identity_of(param), (param, None))[1]

    def plain(self) -> dict[Any, Any]:
        """State under keys that are no parameters."""
        return {key: state for key, state in self._others.values() if not isinstance(key, Tensor)}

    def loose(self) -> dict[int, dict[str, Any]]:
        """By variable id, what lies in no stream."""
        entries = {key: entry for key, entry in self._entries.items() if entry.loose}
        return {key: {name: entry[name] for name in entry if name in entry.loose} for key, entry in entries.items()}

    # What writes do, further down.

    def put(self, entry: StateEntry, name: Any, value: Any) -> None:
        """Writes one value of an attached entry."""
        raise NotImplementedError

    def drop(self, entry: StateEntry, name: Any) -> None:
        """Takes one value out of an attached entry."""
        raise NotImplementedError
