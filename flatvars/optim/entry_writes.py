"""Writes to the state of an optimizer: into streams where they fit, into the entry alone where not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..distributed.shards import whole_of
from ..variables.variable import Variable
from .entry import STEP, StateEntry
from .entry_list import EntryList
from .state_values import is_scalar, is_state_of, own_values, show_state, wide, write_first


class EntryWrites(EntryList):
    """The part of `Entries` that is written to."""

    @torch.no_grad()
    def put(self, entry: StateEntry, name: Any, value: Any) -> None:
        variable, states = entry.variable, self._optimizer.states
        assert variable is not None
        value = self._lying_here(variable, name, value)
        if variable.id in self._dropped:
            value = value.clone() if isinstance(value, Tensor) else value  # it may be what is dropped
            self._erase()
        rule = self._optimizer.rule_for(variable)
        keeps_step = rule.keeps_step
        self._emptied.get(variable.id, (variable, set()))[1].difference_update((name,) if keeps_step else (name, STEP))
        if name == STEP and keeps_step and variable.spec.has_room:
            states.set_steps([variable], [value])
            entry.show(STEP, states.step_of(variable))
        elif self._place_scalar(entry, variable, name, value) or (
            name in rule.init and self._place(entry, variable, name, value)
        ):
            states.note_set([variable])
        elif self._place(entry, variable, name, value) and not keeps_step:
            # torch's SGD knows by its buffer whether a first step was taken.
            states.set_steps([variable], [0.0 if value is None else 1.0])

    def _lying_here(self, variable: Variable, name: Any, value: Any) -> Any:
        """This rank's shard of a value; all of one that every rank keeps."""
        if name in self._optimizer.loose_of(variable):
            return whole_of(value)
        return variable.shard_of(value)

    def _place(self, entry: StateEntry, variable: Variable, name: Any, value: Any) -> bool:
        """Writes a value into the stream of its name, or else keeps it in the dict alone; whether there is a stream."""
        names = self._optimizer.rule_for(variable).states
        if not variable.spec.has_room or name not in names or not (value is None or is_state_of(value, variable)):
            entry.keep(name, value)
            return False
        stream = self._streams(variable)[names.index(name)]
        stream.write(variable.span, value)
        entry.show(name, None)
        if value is not None:
            show_state(entry, name, stream, variable)
        return True

    def _place_scalar(self, entry: StateEntry, variable: Variable, name: Any, value: Any) -> bool:
        """Writes one of the scalars that the variable keeps, if it is one; whether it was."""
        states = self._optimizer.states
        if name not in self._optimizer.rule_for(variable).own or not variable.spec.has_room or not is_scalar(value):
            return False
        states.scalar_of(variable, name).copy_(wide(value).reshape(()))
        entry.show(name, states.scalar_of(variable, name))
        return True

    def drop(self, entry: StateEntry, name: Any) -> None:
        """What somebody holds of it stays what it is until the next step, or until it is written."""
        variable = entry.variable
        assert variable is not None
        if name not in entry.loose:
            names = self._emptied.setdefault(variable.id, (variable, set()))[1]
            names.add(name)
            if not self._optimizer.rule_for(variable).keeps_step or len(entry) == 1:
                names.add(STEP)
        entry.hide(name)

    @torch.no_grad()
    def replace(self, contents: Mapping[Variable, Mapping[Any, Any]]) -> None:
        """Replaces the states of some variables; what a content does not name becomes zero."""
        counts = {variable: self._replace(variable, content) for variable, content in contents.items() if content}
        self._optimizer.states.set_steps(list(counts), list(counts.values()))
        for variable, content in contents.items():
            if not content:
                self._take_out(variable)
                self._dropped[variable.id] = variable, None

    def _replace(self, variable: Variable, content: Mapping[Any, Any]) -> float:
        """All but the count, which is returned."""
        rule = self._optimizer.rule_for(variable)
        content = {name: self._lying_here(variable, name, value) for name, value in content.items()}
        self._take_out(variable)
        entry = self._attached(variable)
        if not variable.spec.has_room:
            for name, value in content.items():
                entry.keep(name, value)
            return 0.0
        for name, stream in zip(rule.states, self._streams(variable), strict=True):
            if not is_state_of(content.get(name), variable):
                write_first(self._optimizer, variable, name, stream)
        for name in rule.own:
            if not is_scalar(content.get(name)):
                self._optimizer.states.scalar_of(variable, name).copy_(
                    wide(self._optimizer.first_value(variable, name))
                )
        placed = [
            self._place_scalar(entry, variable, name, value)
            or (self._place(entry, variable, name, value) and value is not None)
            for name, value in content.items()
        ]
        if rule.keeps_step and STEP in content:
            entry.show(STEP, self._optimizer.states.step_of(variable))
            return float(content[STEP]) or (-0.0 if any(placed) else 0.0)
        return float(any(placed))

    def _take_out(self, variable: Variable, keep: bool = False) -> None:
        """Lets go of a variable's entry; if `keep`, its values stay with whoever holds it."""
        entry = self._entries.pop(variable.id, None)
        self._emptied.pop(variable.id, None)
        _, reference = self._dropped.pop(variable.id, (None, None))
        if entry is None and reference is not None:
            entry = reference()
        if entry is not None:
            entry.detach()
            if keep:
                own_values(entry)

    def forget(self, variables: Iterable[Variable], keep: bool = False) -> None:
        """Lets go of entries whose state is another now; what the streams hold is the caller's."""
        for variable in variables:
            self._take_out(variable, keep)

    @torch.no_grad()
    def _erase(self) -> None:
        states = self._optimizer.states
        emptied, self._emptied = self._emptied, {}
        for variable, names in emptied.values():
            if STEP in names:
                states.set_steps([variable], [0.0])
            for name in names - {STEP}:
                held = states.covering(name, variable)
                if held is not None:
                    held.write(variable.span, None)
        if not self._dropped:
            return
        self.own_dropped()
        dropped, self._dropped = self._dropped, {}
        states.erase([variable for variable, _ in dropped.values()])

    def own_dropped(self) -> None:
        """Entries that were taken out keep their values, whatever comes over the memory they had."""
        for _, reference in self._dropped.values():
            entry = None if reference is None else reference()
            if entry is not None:
                own_values(entry)
