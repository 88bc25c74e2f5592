"""What writes to the state of an optimizer leave to be done before its next step, or when streams move."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor

from .entry import STEP
from .entry_writes import EntryWrites
from .state_values import is_scalar, is_state_of, show_state

_loose, _lent = attrgetter("loose"), attrgetter("lent")


class EntryFollowing(EntryWrites):
    """The part of `Entries` that follows."""

    def settle(self, strict: bool = False) -> None:
        """Does what was put off: dropped states become zeros, loose values go where they belong by now.

        Raises:
            ValueError: if `strict`, a state of another shape than its variable; nothing has changed then.
        """
        if self._emptied or self._dropped:
            self._erase()
        entries = self._entries.values()
        if entries:
            if any(map(_lent, entries)):
                self._take_lent()
            if any(map(_loose, entries)):
                self._gather_loose(strict)
            self.refresh()
            self._mark_counts(stepping=strict)

    def _mark_counts(self, stepping: bool) -> None:
        """A count that somebody made 0 is still that of a state: where there is none, a rule begins anew.

        Args:
            stepping: Only for rules that begin with other values than 0, and what was written through its view: a step
                is not to pay for more.
        """
        entries = self._entries.values()
        if stepping and not any(rule.init or rule.own for rule in self._optimizer.rules()):
            return
        found = [entry for entry in entries if (entry.is_recounted if stepping else entry.shows_count)]
        if found:
            self._optimizer.states.note_set([entry.variable for entry in found if entry.variable is not None])
        for entry in found:
            entry.counted = entry[STEP]._version

    @torch.no_grad()
    def _take_lent(self) -> None:
        """Numbers that were decoded for somebody to look at: what was written to them is stored, and they are let go.

        The next step makes others of them; who looks then, gets those.
        """
        for entry in [entry for entry in self._entries.values() if entry.lent]:
            variable = entry.variable
            assert variable is not None
            for name, numbers in entry.taken_back():
                held = self._optimizer.states.covering(name, variable)
                if held is not None:
                    held.write(variable.span, variable.shard_of(numbers))

    def _gather_loose(self, strict: bool) -> None:
        for entry in [entry for entry in self._entries.values() if entry.loose]:
            variable = entry.variable
            if variable is None or not variable.spec.has_room:
                continue
            rule = self._optimizer.rule_for(variable)
            names = (*rule.states, *rule.own)
            waiting = {name: entry[name] for name in (STEP, *names) if name in entry.loose}
            fits = {name: is_scalar(x) if name in rule.own else is_state_of(x, variable) for name, x in waiting.items()}
            wrong = [name for name in waiting if name != STEP and not fits[name]]
            if strict and wrong and isinstance(waiting[wrong[0]], Tensor):
                raise ValueError(
                    f"{wrong[0]!r} of variable {variable.name!r} has shape {tuple(waiting[wrong[0]].shape)}, but the "
                    f"variable has {tuple(variable.shape)}: set optimizer.state[parameter][{wrong[0]!r}] to a tensor "
                    "of its shape, or delete the entry; nothing was stepped"
                )
            for name, value in waiting.items() if not wrong else ():
                self.put(entry, name, value)

    def refresh(self) -> None:
        """Streams or counts moved: every entry shows them where they are, and the old memory goes."""
        states = self._optimizer.states
        if self._version == states.version:
            return
        self._version = states.version
        for entry in self._entries.values():
            variable = entry.variable
            assert variable is not None
            for name in [name for name in entry if name not in entry.loose]:
                is_scalar_name = name == STEP or name in self._optimizer.rule_for(variable).own
                held = None if is_scalar_name else states.covering(name, variable)
                if name == STEP:
                    entry.show(name, states.step_of(variable))
                elif is_scalar_name:
                    entry.show(name, states.scalar_of(variable, name))
                elif held is not None and entry[name] is not None:
                    show_state(entry, name, held, variable)
        self._mark_counts(stepping=False)  # new views have seen nothing yet
