"""Capturing an optimizer as a record, and putting a record in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backend import AVERAGE, Rule
from ..errors import MismatchError
from ..memory.streams import Stream
from ..variables.variable import Variable
from .checks import misfit
from .entries import Entries
from .keeper import Keeper
from .membership import Membership
from .record import FetchState, GroupRecord, OptimizerRecord
from .state_values import wide, write_first
from .states import APART


class Recorded(Keeper, Protocol):
    """What a record asks of an optimizer."""

    membership: Membership
    entries: Entries
    average: str | None

    def rule_of(self, group: Any) -> Rule:
        """The mathematics of a param group."""

    def kept_states(self, group: Any) -> tuple[str, ...]:
        """The states of a param group, and what is kept beside them."""

    def counts_steps(self, group: Any) -> bool:
        """Whether steps of a group count."""

    def check_changed(self, group: Mapping[str, Any], waits: bool = False) -> None:
        """Raises for an entry of a param group that cannot be."""


def capture_record(optimizer: Recorded) -> OptimizerRecord:
    """See `Optimizer.capture`."""
    optimizer.follow()
    optimizer.entries.settle()
    states, rules = optimizer.states, optimizer.rules()
    names = _all_of(rule.states for rule in rules)
    pairs = zip(optimizer.param_groups, optimizer.membership.groups, strict=True)
    groups = [GroupRecord(hyper_of(group), variables, optimizer.kept_states(group)) for group, variables in pairs]
    regions = [region.dtype for region in optimizer.registry.layout.regions]
    stored = [*names, *(f"{name}{APART}" for name in names)]
    found = {(name, dtype): states.find(name, dtype) for name in stored for dtype in regions}
    streams = {key: stream for key, stream in found.items() if stream is not None}
    kind, loose = type(optimizer).__name__, optimizer.entries.loose()
    rows, own = states.taken, _all_of(rule.own for rule in rules)
    scalars = {name: scalar[:rows] for name, scalar in zip(own, states.scalars(own), strict=True)}
    return OptimizerRecord(
        kind, names, groups, states.steps[:rows], dict(states.slots), states.skipped, streams, loose, scalars
    )


def _all_of(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Names of several rules, each once."""
    return tuple(dict.fromkeys(name for some in names for name in some))


def hyper_of(group: dict[str, Any]) -> dict[str, Any]:
    """All of a param group but the parameters."""
    return {key: value for key, value in group.items() if key != "params"}


def restore_record(optimizer: Recorded, record: OptimizerRecord, fetch: FetchState | None) -> None:
    """See `Optimizer.restore`."""
    optimizer.follow()
    problems = record_problems(optimizer, record)
    if problems:
        raise MismatchError(f"this record is not the optimizer's: {'; '.join(problems)}. Nothing has changed")
    set_hyper(optimizer.param_groups, record)
    optimizer.entries.settle()
    known = optimizer.states.variables  # also those that are in no group any more
    # The groups came first: they say which rule, and so which states there are.
    states = optimizer.states
    shares: dict[tuple[torch.dtype, tuple[str, ...], bool], list[Variable]] = {}
    for variable in known:
        if variable.spec.has_room:
            names = optimizer.rule_for(variable).states
            shares.setdefault((variable.dtype, names, states.is_apart(variable, names)), []).append(variable)
    holders: dict[tuple[str, torch.dtype], list[Variable]] = {}  # rules may share a state
    for (dtype, names, apart), chosen in shares.items():
        states.streams(dtype, names, apart)
        for name in names:
            holders.setdefault((states.stored_name(name, chosen[0]), dtype), []).extend(chosen)
    for (name, dtype), chosen in holders.items():
        held = optimizer.states.find(name, dtype)
        assert held is not None
        if fetch is None:
            _copy(held, record.streams.get((name, dtype)), chosen)
        else:
            _fetch(fetch, name.removesuffix(APART), held, chosen)
    _set_counts(optimizer, record)
    _set_scalars(optimizer, record)
    _begin_new(optimizer, record, holders)
    optimizer.states.skipped.copy_(record.skipped, non_blocking=True)
    optimizer.entries.forget(known)
    _restore_loose(optimizer, {v: _own(v, record.loose[v.id]) for v in known if v.id in record.loose})
    optimizer.entries.refresh()


def _begin_new(
    optimizer: Recorded, record: OptimizerRecord, holders: Mapping[tuple[str, torch.dtype], list[Variable]]
) -> None:
    """What the optimizer keeps and the record does not know begins as ever: an average that was asked for since."""
    for (name, dtype), variables in holders.items():
        held = optimizer.states.find(name, dtype)
        if name.removesuffix(APART) in record.states or held is None:
            continue
        for variable in variables:
            write_first(optimizer, variable, name, held)
    for variable in optimizer.states.variables:
        for name in optimizer.rule_for(variable).own:
            if name not in record.scalars:
                optimizer.states.scalar_of(variable, name).copy_(wide(optimizer.first_value(variable, name)))


def record_problems(optimizer: Recorded, record: OptimizerRecord) -> list[str]:
    """What keeps a record from being restored here, its numbers included; nothing has changed afterwards."""
    problems = capture_record(optimizer).problems(record)
    if AVERAGE in record.states and optimizer.average is None:
        problems.append("it keeps an average of the values; make one first: fv.EMA(optimizer)")
    kept = optimizer.param_groups
    pairs = zip(kept, record.groups, strict=False)
    found = [misfit(hyper_of(group), saved.hyper, f"param group {i}") for i, (group, saved) in enumerate(pairs)]
    problems += [problem for problem in found if problem is not None]
    if problems:
        return problems
    try:
        optimizer.param_groups = [{**group, **saved.hyper} for group, saved in zip(kept, record.groups, strict=True)]
        for group in optimizer.param_groups:
            optimizer.check_changed(group, waits=True)
        optimizer.rules()
    except (TypeError, ValueError) as error:
        return [str(error)]
    finally:
        optimizer.param_groups = kept
    return []


def set_hyper(groups: list[dict[str, Any]], record: OptimizerRecord) -> None:
    """Writes the numbers of a record into param groups; a tensor that a graph or a user holds on to is filled."""
    for group, saved in zip(groups, record.groups, strict=True):
        for key, value in saved.hyper.items():
            current = group.get(key)
            if isinstance(current, Tensor):
                current.copy_(value) if isinstance(value, Tensor) else current.fill_(value)
            else:
                group[key] = value.clone() if isinstance(value, Tensor) else value


def _restore_loose(optimizer: Recorded, contents: Mapping[Variable, Mapping[str, Any]]) -> None:
    """Puts back what lay in no stream; in one, if there is one by now."""
    optimizer.entries.replace({v: content for v, content in contents.items() if not v.spec.has_room})
    for variable, content in contents.items():
        if variable.spec.has_room:
            entry = optimizer.entries[variable.param]
            for name, value in content.items():
                entry[name] = value


def _own(variable: Variable, content: Mapping[str, Any]) -> dict[str, Any]:
    """Loose state in memory of its own: a record may be restored again. Counts stay where they are, as in torch."""
    device = variable.param.device
    return {
        name: value.to(device if value.numel() > 1 else value.device, copy=True) if isinstance(value, Tensor) else value
        for name, value in content.items()
    }


def _fetch(fetch: FetchState, name: str, stream: Stream, variables: list[Variable]) -> None:
    for variable in variables:
        room = stream.room(variable.span)
        if not fetch(name, variable, room):
            stream.write(variable.span, None)
        elif stream.format is not None or stream.divided:
            stream.write(variable.span, room)


def _copy(stream: Stream, saved: Stream | None, variables: list[Variable]) -> None:
    """One copy where both cover the same range; what the other one does not cover becomes zero."""
    if saved is not None and saved.is_like(stream):
        stream.replace(saved)
        return
    stream.clear()
    for variable in variables:
        if saved is not None and saved.covers(variable.span):
            stream.take(variable.span, saved, variable.span)


def _set_scalars(optimizer: Recorded, record: OptimizerRecord) -> None:
    """Of the variables that the record knows."""
    states, names = optimizer.states, _all_of(rule.own for rule in optimizer.rules())
    known = [v for v in states.variables if v.id in record.slots]
    rows = torch.tensor([record.slots[v.id] for v in known], dtype=torch.int64)
    for name, scalar in zip(names, states.scalars(names), strict=True):
        if known and name in record.scalars:
            saved = record.scalars[name]
            scalar[states.rows(known)] = saved[rows.to(saved.device)].to(scalar.device)


def _set_counts(optimizer: Recorded, record: OptimizerRecord) -> None:
    states = optimizer.states
    counts = record.steps.new_zeros(len(record.steps) + 1)
    counts[:-1] = record.steps
    # Variables that the record does not know took no step: the zero at the end.
    rows = [record.slots.get(v.id, -1) for v in states.variables]
    states.set_steps(states.variables, counts[torch.tensor(rows, dtype=torch.int64).to(counts.device)])
    pairs = zip(optimizer.param_groups, optimizer.membership.groups, strict=True)
    paused = [v for group, variables in pairs if not optimizer.counts_steps(group) for v in variables]
    states.pause(paused, at_zero=True)
