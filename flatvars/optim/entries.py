"""`optimizer.state`, alive as in torch.optim: what is written there is what the next step uses.

An entry is a dict of views of the streams and of the counts. A parameter has one from its first step on, or from when
somebody asked for it or wrote one. What fits no stream lies loose in the entry, and goes where it belongs as soon as it
can: the state of a variable that has no room yet, or of a parameter that the store does not hold yet.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backend import Rule
from ..gradients.attached import gradients_of
from ..memory.streams import Stream, normal_tensors
from ..variables.registry import Registry, variable_of
from ..variables.variable import Variable
from .entry import STEP, StateEntry
from .states import States, is_set

_loose, _lent = attrgetter("loose"), attrgetter("lent")


class Keeper(Protocol):
    """What entries ask of their optimizer."""

    registry: Registry
    states: States
    param_groups: list[dict[str, Any]]

    several: bool

    def kept_rule(self, group: Mapping[str, Any] | None = None) -> Rule:
        """The mathematics of its step, and what it keeps beside."""

    def rules(self) -> list[Rule]:
        """Those of all param groups."""

    def rule_for(self, variable: Variable) -> Rule:
        """That of a variable, which may be another for every param group where there are `several`."""

    def names_of(self, variable: Variable) -> tuple[str, ...]:
        """The states that a variable has in its param group."""

    def first_value(self, variable: Variable, name: str) -> Any:
        """What a state or a scalar of a variable begins with: a tensor or a number."""

    def follow(self) -> None:
        """Takes up what was edited in the param groups."""

    def members(self) -> list[Variable]:
        """The variables of all param groups."""


class Entries(MutableMapping[Any, Any]):
    """Parameter to its state. Looking at what is not there yet waits for the device, which counts the steps."""

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

    # The mapping ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """As torch's, a key that is not there gets an empty entry."""
        variable = self._variable(key)
        if variable is None:
            return self._others.setdefault(_identity(key), (key, {}))[1]
        entry = self._entries.get(variable.id) or self._attached(variable)
        if self._lacks(entry, variable):
            self.fill(entry)
        return entry

    def __setitem__(self, key: Any, state: Any) -> None:
        variable = self._variable(key)
        if variable is None:
            self._free(state)
            self._others[_identity(key)] = key, state
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
            del self._others[_identity(key)]
            return
        entry = self._entries.pop(variable.id, None)
        if entry is not None:
            entry.detach()
        # What somebody holds of it stays what it is until the next step.
        self._dropped[variable.id] = variable, None if entry is None else weakref.ref(entry)

    def __contains__(self, key: object) -> bool:
        variable = self._variable(key)
        if variable is None:
            return _identity(key) in self._others
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

    # Whose ----------------------------------------------------------------------------------------------------------

    def _variable(self, key: Any) -> Variable | None:
        """The variable of a parameter, if the optimizer keeps state for it."""
        if not isinstance(key, Tensor):
            return None
        states = self._optimizer.states
        found = variable_of(key)
        if found is None or found[0] is not states.registry:
            return None
        if found[1].id not in states.slots or _identity(key) in self._others:
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

    # Entries --------------------------------------------------------------------------------------------------------

    def _attached(self, variable: Variable) -> StateEntry:
        entry = self._entries.get(variable.id)
        if entry is None:
            entry = self._entries[variable.id] = StateEntry()
            entry.attach(self, variable)
        return entry

    def _lacks(self, entry: StateEntry, variable: Variable) -> bool:
        """Whether something that a variable may have is not in its entry."""
        names = self._optimizer.names_of(variable)
        if not names:
            return STEP not in entry and self._optimizer.rule_for(variable).keeps_step
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
        return self._optimizer.states.streams(variable.dtype, self._optimizer.rule_for(variable).states)

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
        return self._others.get(_identity(param), (param, None))[1]

    def plain(self) -> dict[Any, Any]:
        """State under keys that are no parameters."""
        return {key: state for key, state in self._others.values() if not isinstance(key, Tensor)}

    def loose(self) -> dict[int, dict[str, Any]]:
        """By variable id, what lies in no stream."""
        entries = {key: entry for key, entry in self._entries.items() if entry.loose}
        return {key: {name: entry[name] for name in entry if name in entry.loose} for key, entry in entries.items()}

    # Writes ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def put(self, entry: StateEntry, name: Any, value: Any) -> None:
        variable, states = entry.variable, self._optimizer.states
        assert variable is not None
        value = variable.shard_of(value)
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
        content = {name: variable.shard_of(value) for name, value in content.items()}
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
                _own(entry)

    def forget(self, variables: Iterable[Variable], keep: bool = False) -> None:
        """Lets go of entries whose state is another now; what the streams hold is the caller's."""
        for variable in variables:
            self._take_out(variable, keep)

    # Following ------------------------------------------------------------------------------------------------------

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
                    held.write(variable.span, numbers)

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
                _own(entry)

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


def show_state(entry: StateEntry, name: str, stream: Stream, variable: Variable) -> None:
    """Puts what a stream holds of a variable into its entry: in place, or decoded."""
    if stream.format is None:
        entry.show(name, variable.as_whole(stream.piece(variable.span)))
    else:
        with normal_tensors():
            entry.lend(name, stream.read(variable.span))


def write_first(optimizer: Keeper, variable: Variable, name: str, stream: Stream) -> None:
    """Writes what a state of a variable begins with."""
    first = optimizer.first_value(variable, name)
    stream.write(variable.span, wide(first).expand(variable.shape))


def is_state_of(value: Any, variable: Variable) -> bool:
    """Whether a value is a state of a variable's shape."""
    return isinstance(value, Tensor) and tuple(value.shape) == tuple(variable.shape)


def is_scalar(value: Any) -> bool:
    """Whether a value is one number."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _own(entry: StateEntry) -> None:
    """Gives an entry that was taken out memory of its own."""
    for name in [name for name in entry if name not in entry.loose]:
        value = entry[name]
        entry.keep(name, value.detach().clone() if isinstance(value, Tensor) else value)


def _identity(key: Any) -> Any:
    """Tensors are keys by identity, as everywhere in torch; all else by value."""
    return ("tensor", id(key)) if isinstance(key, Tensor) else key


def wide(value: Any) -> Tensor:
    """A number as a tensor, whatever the default dtype is."""
    return torch.as_tensor(value, dtype=torch.float64)
