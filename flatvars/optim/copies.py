"""Copies of optimizers: deepcopy, pickle and torch.save, together with the store they step. They speak the record."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import FlatvarsError
from ..variables.registry import Registry
from ..variables.variable import Variable
from .record import GroupRecord, OptimizerRecord
from .recording import Recorded, hyper_of

# What is made anew, and what torch.optim leaves behind as well: hooks, and a scheduler's wrapper of `step`.
LEFT_OUT = {
    "_calls",
    "_change",
    "_changes",
    "_counted",
    "_counting",
    "_divided",
    "_enrolled",
    "_following",
    "_frozen",
    "_homeless",
    "_kinds",
    "_last_rules",
    "_norm",
    "_planned",
    "_planned_for",
    "_plans",
    "_rooms",
    "_rows",
    "_steps",
    "entries",
    "found_inf",
    "grad_scale",
    "membership",
    "observations",
    "param_groups",
    "registry",
    "states",
    "step",
}


class Copied(Recorded, Protocol):
    """What a copy asks of an optimizer."""

    def capture(self) -> OptimizerRecord:
        """All that it holds."""

    def restore(self, record: OptimizerRecord, fetch: Any) -> None:
        """Puts a record in its place."""

    def _attach(self, registry: Registry) -> None:
        """Begins anew over a registry."""


def get_state(optimizer: Copied) -> dict[str, Any]:
    """What an optimizer is, without its store's streams: param groups by index, states one by one."""
    if optimizer.states.is_partial:
        raise FlatvarsError(
            f"the state of this {type(optimizer).__name__} is shared out over ranks, and a copy would hold this rank's "
            "part alone; save it with torch.distributed.checkpoint (see flatvars/distributed/README.md)"
        )
    plain = {name: value for name, value in optimizer.__dict__.items() if name not in LEFT_OUT}
    plain = {name: value for name, value in plain.items() if not name.endswith("_hooks")}
    record = optimizer.capture()
    if lazy := optimizer.membership.lazy:
        raise FlatvarsError(
            f"an optimizer of {len(lazy)} lazy parameters cannot be copied before they have shapes; run a forward pass "
            "first, or make it by name patterns or of the store, which finds them in the copy"
        )
    counts = record.counts()
    known = optimizer.states.variables  # of some it keeps state though they are in no group any more
    return {
        "plain": plain,
        "registry": optimizer.registry,
        "groups": [hyper_of(group) for group in optimizer.param_groups],
        "members": [[variable.index for variable in group.variables] for group in record.groups],
        "by_number": optimizer.membership.by_number,
        "selectors": optimizer.membership.selectors(optimizer.param_groups),
        "steps": {v.index: counts[v.id] for v in known if v.id in counts},
        "names": record.states,
        "states": {v.index: _states_of(record, v) for v in known if v.id in counts},
        "scalars": _scalars_of(record, known),
        "loose": {v.index: record.loose[v.id] for v in known if v.id in record.loose},
        "skipped": record.skipped,
    }


def _scalars_of(record: OptimizerRecord, variables: list[Variable]) -> dict[str, list[float]]:
    """By name, in the order of the counts."""
    counts = record.counts() if record.scalars else {}
    known = [v.id for v in variables if v.id in counts]
    return {name: [values[key] for key in known] for name, values in record.scalars_of().items()}


def _states_of(record: OptimizerRecord, variable: Variable) -> dict[str, Tensor]:
    if not variable.spec.has_room:
        return {}
    pieces = {}
    for name in record.states:
        stream = record.streams.get((name, variable.dtype))
        if stream is not None and stream.base <= variable.span.offset and variable.span.stop <= stream.cover[1]:
            whole = stream.format is None
            pieces[name] = stream.piece(variable.span) if whole else stream.read(variable.span)
    return pieces


@torch.no_grad()
def set_state(optimizer: Copied, state: dict[str, Any]) -> None:
    """Makes a new optimizer over the state's registry of what `get_state` gave."""
    registry: Registry = state["registry"]
    torch.optim.Optimizer.__setstate__(optimizer, state["plain"])  # type: ignore[arg-type]
    optimizer._attach(registry)
    for hyper, indices, selector in zip(state["groups"], state["members"], state["selectors"], strict=True):
        group = {"params": [registry.variables[i].param for i in indices], **hyper}
        optimizer.param_groups.append(group)
        if selector is not None:
            optimizer.membership.select(group, selector)
    optimizer.membership.by_number = state["by_number"]
    optimizer.follow()
    optimizer.states.enroll(registry.variables[index] for index in (*state["steps"], *state["loose"]))
    ids = [variable.id for variable in registry.variables]
    record = OptimizerRecord(
        type(optimizer).__name__,
        state["names"],
        [GroupRecord({}, [registry.variables[i] for i in indices]) for indices in state["members"]],
        torch.tensor([float(count) for count in state["steps"].values()], dtype=torch.float32),
        {ids[index]: row for row, index in enumerate(state["steps"])},
        state["skipped"],
        loose={ids[index]: content for index, content in state["loose"].items()},
        scalars={name: torch.tensor(values, dtype=torch.float32) for name, values in state["scalars"].items()},
    )

    def fetch(name: str, variable: Variable, target: Tensor) -> bool:
        piece = state["states"].get(variable.index, {}).get(name)
        if piece is not None:
            target.copy_(piece)
        return piece is not None

    optimizer.restore(record, fetch)
