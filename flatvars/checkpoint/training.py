"""What training needs beside values: optimizers, schedulers, gradients of an unfinished cycle, random numbers.

Captured as an image's planes and a description by names; `resuming.py` applies it by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..gradients.attached import gradients_of
from ..gradients.cycle import PENDING
from ..memory.streams import GRADS, Stream
from ..optim.record import OptimizerRecord
from ..variables.registry import Registry
from .image import Image, Plane
from .plain import encode
from .random_state import RandomState, capture_random
from .records import Record


def as_list(given: Any) -> list[Any]:
    """None, one thing or several, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


@dataclass
class Counts:
    """Steps taken by variables: on the device until someone asks."""

    known: dict[str, int]
    parts: list[tuple[list[str | None], Tensor]]
    resolved: bool = False

    def resolve(self) -> dict[str, int]:
        """By name; waits for the device."""
        if not self.resolved:
            for names, taken in self.parts:
                self.known.update({n: int(c) for n, c in zip(names, taken.tolist(), strict=True) if n is not None})
            self.known = {name: count for name, count in self.known.items() if count}
            self.resolved = True
        return self.known


@dataclass
class OptimizerImage:
    """One optimizer, without its streams."""

    optimizer: Any
    kind: str
    states: tuple[str, ...]
    groups: list[dict[str, Any]]
    counts: Counts
    skipped: Tensor

    def describe(self) -> dict[str, Any]:
        """As JSON, by names."""
        return {
            "class": self.kind,
            "states": list(self.states),
            "groups": [
                {"hyper": {k: _number(v) for k, v in group["hyper"].items()}, "variables": group["variables"]}
                for group in self.groups
            ],
            "steps": self.counts.resolve(),
            "skipped": int(self.skipped),
        }


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


@dataclass
class Training:
    """Everything of a training run that is no stream."""

    optimizers: list[OptimizerImage]
    schedulers: list[Any]
    gradients: dict[str, Any]
    random: RandomState | None = None
    scheduler_states: list[dict[str, Any]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """As JSON, by names."""
        return {
            "optimizers": [optimizer.describe() for optimizer in self.optimizers],
            "schedulers": self.scheduler_states,
            "gradients": self.gradients,
            "random": None if self.random is None else self.random.content,
        }


def capture_training(registry: Registry, image: Image, optimizers: Any, schedulers: Any, rng: Any) -> None:
    """Adds to an image what training needs; nothing is copied and nothing waits for the device.

    Raises:
        CheckpointError: an optimizer of another store or of torch, a scheduler whose state is no data, a sparse
            gradient.
    """
    chosen, scheduled = as_list(optimizers), as_list(schedulers)
    random = capture_random(registry.device, rng) if rng else None
    gradients = {"mode": registry.gradients.mode, "touched": [], "spent": False, "fresh": False, "pending": []}
    image.training = Training(
        [_capture(registry, image, o, i) for i, o in enumerate(chosen)], scheduled, gradients, random
    )
    for scheduler in scheduled:
        kind = type(scheduler).__name__
        image.training.scheduler_states.append({"class": kind, "state": encode(scheduler.state_dict(), kind)})
    if chosen:
        _capture_gradients(registry, image, gradients)
    if random is not None:
        image.loose.update(random.tensors)


def check_optimizer(registry: Registry, optimizer: Any) -> None:
    """Raises CheckpointError for what is no optimizer over this store."""
    if not hasattr(optimizer, "capture") or optimizer.registry is not registry:
        raise CheckpointError(
            f"{type(optimizer).__name__} is no flatvars optimizer over this store; pass one of flatvars.optim that was "
            "made with it"
        )


def _capture(registry: Registry, image: Image, optimizer: Any, number: int) -> OptimizerImage:
    check_optimizer(registry, optimizer)
    record: OptimizerRecord = optimizer.capture()
    named: list[str | None] = [None] * len(record.steps)
    for variable in record.variables:
        named[record.slots[variable.id]] = variable.name
    counts = Counts({}, [(named, record.steps.clone())])
    group_of = {v.id: i for i, group in enumerate(record.groups) for v in group.variables}

    def with_state(name: str) -> Callable[[list[Record], Stream], list[Record]]:
        groups = {i for i, group in enumerate(record.groups) if name in group.states}

        def choose(records: list[Record], _: Stream) -> list[Record]:
            steps = counts.resolve()
            return [
                r for r in records if r.names[0] in steps and r.span.spec.trainable and group_of.get(r.id) in groups
            ]

        return choose

    for (name, region), held in record.streams.items():
        image.planes.append(Plane(name, f"optimizer {number}: {name}", region, held, with_state(name)))
    groups = [{"hyper": _hyper(group.hyper), "variables": [v.name for v in group.variables]} for group in record.groups]
    return OptimizerImage(optimizer, record.kind, record.states, groups, counts, record.skipped)


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's numbers; tensors become numbers when they are written."""
    left_out = ("params", "param_names")
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else encode(value, f"hyper-parameter {key!r}")
        for key, value in group.items()
        if key not in left_out
    }


def _capture_gradients(registry: Registry, image: Image, content: dict[str, Any]) -> None:
    found = gradients_of(registry).snapshot()
    for variable in found.pending:
        grad = variable.param.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise CheckpointError(
                f"the pending gradient of {variable.name!r} is {grad.layout}, which files cannot hold; call "
                "store.accumulate() before saving in the middle of a cycle, or zero_grad() after the step"
            )
        image.loose[f"{PENDING}/{variable.name}"] = grad.detach()
    content.update(
        touched=[v.name for v in found.open], pending=[v.name for v in found.pending], spent=False, fresh=found.norm
    )
    touched = {v.id for v in found.open}

    def choose(records: list[Record], _: Stream) -> list[Record]:
        return [r for r in records if r.id in touched]

    if touched:
        image.add(registry, GRADS, GRADS, choose)
