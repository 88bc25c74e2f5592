"""What training needs beside values: optimizers, schedulers, gradients of an unfinished cycle, random numbers.

Captured as an image's planes and a description by names; `resuming.py` applies it by the same names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
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
from .random_state import capture_random
from .records import Record


def as_list(given: Any) -> list[Any]:
    """None, one thing or several, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


@dataclass
class OptimizerImage:
    """One optimizer with its record, whose numbers lie on the device until someone asks."""

    optimizer: Any
    record: OptimizerRecord

    @cached_property
    def counts(self) -> dict[int, int]:
        """Steps taken by each variable that took any, by id; waits for the device."""
        return self.record.counts()

    def choose(self, state: str) -> Callable[[list[Record], Stream], list[Record]]:
        """Which variables' part of a state goes into a file: of those that took a step."""
        members = {v.id for group in self.record.groups if state in group.states for v in group.variables}
        return lambda records, _: [
            r for r in records if r.id in members and r.id in self.counts and r.span.spec.trainable
        ]

    def copy(self, to_host: Callable[[Tensor], Tensor]) -> None:
        """Lets go of all that the optimizer may change."""
        record = self.record
        steps, skipped = to_host(record.steps), to_host(record.skipped)
        groups = [
            dataclasses.replace(
                group, hyper={k: to_host(v) if isinstance(v, Tensor) else v for k, v in group.hyper.items()}
            )
            for group in record.groups
        ]
        self.record = dataclasses.replace(
            record, steps=steps, skipped=skipped, groups=groups, slots=dict(record.slots), streams={}
        )

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
        steps = {names[v.id]: self.counts[v.id] for v in record.variables if v.id in self.counts}
        skipped = int(record.skipped)
        return {
            "class": record.kind,
            "states": list(record.states),
            "groups": groups,
            "steps": steps,
            "skipped": skipped,
        }


@dataclass
class Training:
    """Everything of a training run that is no stream.

    Attributes:
        names: Of variables, by id.
        saved: Schedulers, gradients and generators as JSON.
    """

    names: Mapping[int, str]
    optimizers: list[OptimizerImage]
    schedulers: list[Any]
    saved: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """As JSON, by names."""
        return {"optimizers": [one.describe(self.names) for one in self.optimizers], **self.saved}


def capture_training(registry: Registry, image: Image, optimizers: Any, schedulers: Any, rng: Any) -> None:
    """Adds to an image what training needs; nothing is copied and nothing waits for the device.

    Raises:
        CheckpointError: an optimizer of another store or of torch, a scheduler whose state is no data, a sparse
            gradient.
    """
    owners = [_capture(registry, image, number, one) for number, one in enumerate(as_list(optimizers))]
    scheduled = as_list(schedulers)
    states = [{"class": type(one).__name__, "state": encode(one.state_dict(), type(one).__name__)} for one in scheduled]
    gradients = _capture_gradients(registry, image) if owners else NO_GRADIENTS
    random, loose = capture_random(registry.device, rng) if rng else (None, {})
    image.loose.update(loose)
    saved = {"schedulers": states, "gradients": {"mode": registry.gradients.mode, **gradients}, "random": random}
    image.training = Training(image.catalog.names, owners, scheduled, saved)


def check_optimizer(registry: Registry, optimizer: Any) -> None:
    """Raises CheckpointError for what is no optimizer over this store."""
    if not hasattr(optimizer, "capture") or optimizer.registry is not registry:
        raise CheckpointError(
            f"{type(optimizer).__name__} is no flatvars optimizer over this store; pass one of flatvars.optim that was "
            "made with it"
        )


def _capture(registry: Registry, image: Image, number: int, optimizer: Any) -> OptimizerImage:
    check_optimizer(registry, optimizer)
    record: OptimizerRecord = optimizer.capture()
    groups = [
        dataclasses.replace(group, hyper=_hyper(group.hyper), variables=list(group.variables))
        for group in record.groups
    ]
    one = OptimizerImage(optimizer, dataclasses.replace(record, groups=groups))
    for (state, region), stream in record.streams.items():
        image.planes.append(Plane(state, f"optimizer {number}: {state}", region, stream, one.choose(state)))
    return one


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's numbers; tensors become numbers when they are written."""
    return {
        key: value.detach() if isinstance(value, Tensor) else encode(value, f"hyper-parameter {key!r}")
        for key, value in group.items()
        if key != "param_names"
    }


NO_GRADIENTS = {"touched": [], "spent": False, "fresh": False, "pending": []}


def _capture_gradients(registry: Registry, image: Image) -> dict[str, Any]:
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
    touched = {v.id for v in found.open}
    if touched:
        image.add(registry, GRADS, GRADS, lambda records, _: [r for r in records if r.id in touched])
    names, pending = [v.name for v in found.open], [v.name for v in found.pending]
    return {"touched": names, "pending": pending, "spent": False, "fresh": found.norm}
