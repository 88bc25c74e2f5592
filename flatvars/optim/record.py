"""The record of an optimizer: all it holds of its variables, for whoever copies, saves, shows or replaces it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..memory.streams import Stream
from ..variables.variable import Variable
from .rows import is_set

FetchState = Callable[[str, Variable, Tensor], bool]
"""Writes one state of one variable into a tensor of its shape; False where there is none, which means zeros."""


@dataclass
class GroupRecord:
    """One param group.

    Attributes:
        hyper: All entries but the parameters.
        variables: In the order of the group's parameters.
        states: Names of the states that the group keeps.
    """

    hyper: dict[str, Any]
    variables: Sequence[Variable]
    states: tuple[str, ...] = ()


@dataclass
class OptimizerRecord:
    """What `Optimizer.capture` returns and `Optimizer.restore` takes. A captured one shares memory with the optimizer.

    Attributes:
        kind: Name of the optimizer's class.
        states: Names of the state streams, in the rule's order.
        groups: As `param_groups`.
        steps: float32 [rows]: steps taken by each variable.
        slots: Row of each variable in `steps`, by id.
        skipped: int32 []: steps that were skipped.
        streams: By name of the state and dtype of the region, those that exist.
        scalars: By name: float32 [rows], what each variable keeps from step to step beside its streams.
        loose: By variable id: entries of its state that lie in no stream, as those of a variable without room.
    """

    kind: str
    states: tuple[str, ...]
    groups: list[GroupRecord]
    steps: Tensor
    slots: Mapping[int, int]
    skipped: Tensor
    streams: dict[tuple[str, torch.dtype], Stream] = field(default_factory=dict)
    loose: dict[int, dict[str, Any]] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)

    @property
    def variables(self) -> list[Variable]:
        """Of all groups."""
        return [variable for group in self.groups for variable in group.variables]

    def counts(self) -> dict[int, float]:
        """Steps taken by each variable that has a state, by id: -0.0 where it was set and no step taken since.

        Waits for the device.
        """
        taken = self.steps.tolist()
        known = [(key, taken[row]) for key, row in self.slots.items()]
        return {key: int(count) or -0.0 for key, count in known if is_set(count)}

    def scalars_of(self) -> dict[str, dict[int, float]]:
        """What variables that took a step keep, by name and id. Waits for the device."""
        known = self.counts()
        found = {name: scalar.tolist() for name, scalar in self.scalars.items()}
        return {name: {key: values[self.slots[key]] for key in known} for name, values in found.items()}

    def problems(self, other: OptimizerRecord) -> list[str]:
        """What keeps `other` from taking the place of this one."""
        if other.kind != self.kind:
            return [f"it holds the state of a {other.kind}, and the optimizer is a {self.kind}"]
        if len(other.groups) != len(self.groups):
            return [f"it has {len(other.groups)} param groups, and the optimizer {len(self.groups)}"]
        found = []
        for number, (mine, theirs) in enumerate(zip(self.groups, other.groups, strict=True)):
            if {v.id for v in mine.variables} != {v.id for v in theirs.variables}:
                found.append(
                    f"its param group {number} holds {len(theirs.variables)} variables, and the optimizer's "
                    f"{len(mine.variables)}, or others"
                )
        return found
