"""What a run needs beside values: optimizers, schedulers, gradients of an unfinished cycle; as JSON, by names."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..gradients.cycle import GradientSnapshot
from ..memory.streams import Stream
from ..optim.record import OptimizerRecord
from ..variables.registry import Registry
from .plain import decode, encode
from .records import Record

LOOSE = "loose"
"""Prefix of tensors of an optimizer's state that lie in no stream."""

FILE = "$file"
"""In the JSON of such a state, what stands for a tensor: an object of its name in the file."""


SCALE = ".scale"
"""Behind the label of a state that is stored as codes: of the scales of its units."""


def label_of(state: str, number: int) -> str:
    """Prefix of the tensors of an optimizer's state: two may have state of one name for one variable.

    Args:
        number: Of the optimizer among those that are saved together.
    """
    return f"{state}.{number}" if number else state


def is_in_file(value: Any) -> bool:
    """Whether JSON stands for a tensor of the file."""
    return isinstance(value, dict) and list(value) == [FILE]


def as_list(given: Any) -> list[Any]:
    """None, one thing or several, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


@dataclass
class OptimizerImage:
    """One optimizer with its record, whose numbers lie on the device until someone asks.

    Attributes:
        loose: What the record holds of it, as JSON by names.
    """

    optimizer: Any
    record: OptimizerRecord
    loose: Mapping[str, Any]

    @cached_property
    def counts(self) -> dict[int, float]:
        """See `OptimizerRecord.counts`."""
        return self.record.counts()

    def choose(self, state: str) -> Callable[[list[Record], Stream], list[Record]]:
        """Which variables' part of a state goes into a file: of those that took a step."""
        groups = self.record.groups
        without = {v.id for group in groups if state not in group.states for v in group.variables}
        # Of some there is state though they are in no group any more: it goes on where they are put back.
        return lambda records, _: [
            r for r in records if r.id in self.counts and r.id not in without and r.span.spec.has_room
        ]

    def copy(self, to_host: Callable[[Tensor], Tensor], streams: Mapping[int, Stream]) -> None:
        """Lets go of all that the optimizer may change.

        Args:
            streams: Copies of its streams, by the identities of those.
        """
        record = self.record
        steps, skipped = to_host(record.steps), to_host(record.skipped)
        groups = [
            dataclasses.replace(
                group, hyper={k: to_host(v) if isinstance(v, Tensor) else v for k, v in group.hyper.items()}
            )
            for group in record.groups
        ]
        self.record = dataclasses.replace(
            record,
            steps=steps,
            skipped=skipped,
            groups=groups,
            slots=dict(record.slots),
            streams={key: streams[id(stream)] for key, stream in record.streams.items()},
            scalars={name: to_host(scalar) for name, scalar in record.scalars.items()},
            loose={key: {name: _own(value) for name, value in each.items()} for key, each in record.loose.items()},
        )

    def as_record(self) -> OptimizerRecord:
        """What the optimizer restores."""
        groups = [
            dataclasses.replace(
                group, hyper={k: v if isinstance(v, Tensor) else decode(v) for k, v in group.hyper.items()}
            )
            for group in self.record.groups
        ]
        return dataclasses.replace(self.record, groups=groups)

    def describe(self, names: Mapping[int, str]) -> dict[str, Any]:
        """As JSON, by names."""
        record = self.record
        groups = [
            {
                "hyper": {k: v.item() if isinstance(v, Tensor) else v for k, v in group.hyper.items()},
                "variables": [names[v.id] for v in group.variables],
            }
            for group in record.groups
        ]
        steps = {names[key]: count for key, count in self.counts.items() if key in names}
        skipped = int(record.skipped)
        kept = {
            name: {names[key]: encode(number, name) for key, number in values.items() if key in names}
            for name, values in record.scalars_of().items()
        }
        return {
            **({"scalars": kept} if kept else {}),
            "class": record.kind,
            "states": list(record.states),
            "groups": groups,
            "steps": steps,
            "skipped": skipped,
            **({"loose": self.loose} if self.loose else {}),
        }


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


@dataclass
class Training:
    """Everything of a training run that is no stream.

    Attributes:
        names: Of variables, by id.
        scheduled: Class and state of each scheduler, as JSON.
        mode: How gradients are kept.
        gradients: Those that no step has used; None without an optimizer.
        random: Of the generators, as JSON; None if they were not asked for.
        seed: Of the store: states that are rounded at random go on with the same draws.
    """

    names: Mapping[int, str]
    optimizers: list[OptimizerImage]
    schedulers: list[Any]
    scheduled: list[dict[str, Any]]
    mode: str
    gradients: GradientSnapshot | None
    random: dict[str, Any] | None
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """As JSON, by names."""
        found = self.gradients or GradientSnapshot(self.mode, ())
        touched, pending = ([self.names[v.id] for v in each] for each in (found.open, found.pending))
        gradients = {"mode": self.mode, "touched": touched, "pending": pending, "spent": False, "fresh": found.norm}
        optimizers = [one.describe(self.names) for one in self.optimizers]
        return {
            "optimizers": optimizers,
            "schedulers": self.scheduled,
            "gradients": gradients,
            "random": self.random,
            "seed": self.seed,
        }


def check_optimizer(registry: Registry, optimizer: Any) -> None:
    """Raises CheckpointError for what is no optimizer over this store."""
    if not hasattr(optimizer, "capture") or optimizer.registry is not registry:
        raise CheckpointError(
            f"{type(optimizer).__name__} is no flatvars optimizer over this store; pass one of flatvars.optim that was "
            "made with it"
        )
