"""What training needs beside values: optimizers, schedulers, gradients of an unfinished cycle, masks, random numbers.

Captured as an image's planes and a description by names; applied to another store by the same names. Everything is
checked before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..registry import Registry
from ..streams import GRADS
from ..variable import Variable
from .image import Image, Plane, Record, existing
from .known import members_of
from .plain import decode, encode
from .random_state import RandomState, capture_random

if TYPE_CHECKING:
    from ..optim.base import Optimizer

PENDING = "pending"
"""Prefix of gradients that autograd left in `.grad` and nobody has used yet."""


def as_list(given: Any) -> list[Any]:
    """None, one thing or several, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


@dataclass
class Counts:
    """Steps taken by variables: on the device until someone asks."""

    known: dict[str, int]
    parts: list[tuple[list[str], Tensor]]
    resolved: bool = False

    def resolve(self) -> dict[str, int]:
        """By name; waits for the device."""
        if not self.resolved:
            for names, taken in self.parts:
                self.known.update(zip(names, taken.tolist(), strict=True))
            self.known = {name: count for name, count in self.known.items() if count}
            self.resolved = True
        return self.known


@dataclass
class OptimizerImage:
    """One optimizer, without its streams."""

    optimizer: Optimizer
    states: tuple[str, ...]
    groups: list[dict[str, Any]]
    counts: Counts
    skipped: Tensor

    def describe(self) -> dict[str, Any]:
        """As JSON, by names."""
        return {
            "class": type(self.optimizer).__name__,
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
    image.training = Training([_capture(registry, image, o) for o in chosen], scheduled, gradients, random)
    for scheduler in scheduled:
        kind = type(scheduler).__name__
        image.training.scheduler_states.append({"class": kind, "state": encode(scheduler.state_dict(), kind)})
    if chosen:
        _capture_gradients(registry, image, gradients)
    if random is not None:
        image.loose.update(random.tensors)


def check_optimizer(registry: Registry, optimizer: Any) -> None:
    """Raises CheckpointError for what is no optimizer over this store."""
    if getattr(optimizer, "_registry", None) is not registry:
        raise CheckpointError(
            f"{type(optimizer).__name__} is no flatvars optimizer over this store; pass one of flatvars.optim that was "
            "made with it"
        )


def _capture(registry: Registry, image: Image, optimizer: Optimizer) -> OptimizerImage:
    check_optimizer(registry, optimizer)
    states = optimizer.rule().states
    members = members_of(optimizer)
    known = {members.names[key]: count for key, count in optimizer._counts.items() if key in members.names}
    plans = optimizer._plans.parts if optimizer._plans is not None else []
    parts = [(names, part.plan.step_counts()) for names, part in zip(members.of_parts, plans, strict=True)]
    counts = Counts(known, parts)
    states_of = [optimizer.state_names(group) for group in optimizer.param_groups]

    def has_state(name: str) -> Callable[[Record, Tensor], bool]:
        def has(record: Record, _: Tensor) -> bool:
            group = members.group_of.get(record.id)
            wanted = group is not None and name in states_of[group] and record.span.spec.trainable
            return wanted and record.name in counts.resolve()

        return has

    for name in states:
        stream = f"{optimizer._key}.{name}"
        for dtype, buffer in existing(registry, stream):
            image.planes.append(Plane(name, stream, dtype, buffer, has_state(name)))
    groups = [
        {"hyper": _hyper(group), "variables": names}
        for group, names in zip(optimizer.param_groups, members.of_groups, strict=True)
    ]
    return OptimizerImage(optimizer, states, groups, counts, optimizer._skipped)


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's numbers; tensors become numbers when they are written."""
    left_out = ("params", "param_names")
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else encode(value, f"hyper-parameter {key!r}")
        for key, value in group.items()
        if key not in left_out
    }


def _capture_gradients(registry: Registry, image: Image, content: dict[str, Any]) -> None:
    gradients = registry.gradients
    if gradients.mode == "views":
        touched = {v.id for v in registry.trainable() if gradients._settle(v)}
    else:
        touched = set(gradients.touched)
        for variable in registry.variables:
            grad = variable.param.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise CheckpointError(
                    f"the pending gradient of {variable.name!r} is {grad.layout}, which files cannot hold; call "
                    "store.accumulate() before saving in the middle of a cycle, or zero_grad() after the step"
                )
            image.loose[f"{PENDING}/{variable.name}"] = grad.detach()
            content["pending"].append(variable.name)
    content.update(
        touched=[v.name for v in registry.variables if v.id in touched],
        spent=gradients.spent,
        fresh=gradients.fresh and not gradients.exposed,
    )
    for dtype, buffer in existing(registry, GRADS) if touched else []:
        image.planes.append(Plane(GRADS, GRADS, dtype, buffer, lambda record, _: record.id in touched))


# Applying ---------------------------------------------------------------------------------------------------------


ByName = Mapping[str, Variable]
Fetch = Callable[[str, Tensor], None]
"""Copies the tensor of a name into one of the same shape."""


def training_problems(
    content: Mapping[str, Any] | None, optimizers: Sequence[Any], schedulers: Sequence[Any], by_name: ByName
) -> list[str]:
    """What keeps a saved training state from being applied here, all of it.

    Args:
        content: The description's `training`.
        by_name: The store's variables by their names in the file.

    Raises:
        DamagedFileError: values that nobody wrote.
    """
    if content is None:
        return ["the file holds values alone: it was saved without optimizer=; leave optimizer and schedulers out"]
    problems = []
    for kind, saved, given in (
        ("optimizer", content["optimizers"], optimizers),
        ("scheduler", content["schedulers"], schedulers),
    ):
        if given and len(saved) != len(given):
            problems.append(f"the file holds {len(saved)} {kind}s, and {len(given)} were given; give as many")
        for one, mine in zip(saved, given, strict=False):
            decode(one["state"] if kind == "scheduler" else [group["hyper"] for group in one["groups"]])
            if one["class"] != type(mine).__name__:
                problems.append(f"the file holds the state of a {one['class']}, and a {type(mine).__name__} was given")
    for saved, optimizer in zip(content["optimizers"], optimizers, strict=False):
        problems += _group_problems(saved, optimizer, by_name)
    return problems


def _group_problems(saved: Mapping[str, Any], optimizer: Optimizer, by_name: ByName) -> list[str]:
    if len(saved["groups"]) != len(optimizer.param_groups):
        return [f"the optimizer has {len(optimizer.param_groups)} param groups, the saved one {len(saved['groups'])}"]
    problems = []
    for i, (group, variables) in enumerate(zip(saved["groups"], optimizer._variables, strict=True)):
        theirs = {by_name[name].id for name in group["variables"] if name in by_name}
        mine = {v.id for v in variables}
        if theirs != mine or any(name not in by_name for name in group["variables"]):
            problems.append(
                f"param group {i} holds {len(mine)} variables here and {len(group['variables'])} in the file, or "
                "others: make the optimizer with the same groups"
            )
    return problems


def apply_flags(registry: Registry, saved: Mapping[str, Mapping[str, Any]], by_name: ByName) -> None:
    """Trains and freezes as the file says; re-carves where a variable lacks room."""
    for name, content in saved.items():
        variable = by_name[name]
        if variable.requires_grad != content["trainable"]:
            variable.param.requires_grad_(content["trainable"])
        variable.frozen = bool(content["frozen"])
    registry.sync_masks()


def apply_optimizer(optimizer: Optimizer, content: Mapping[str, Any], by_name: ByName) -> None:
    """Hyper-parameters, step counts and the count of skipped steps; streams are the caller's."""
    for group, saved in zip(optimizer.param_groups, content["groups"], strict=True):
        for key, value in decode(saved["hyper"]).items():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)  # the tensor a CUDA graph or the user holds on to
            else:
                group[key] = value
    optimizer._retire_plans()
    steps = {by_name[name].id: count for name, count in content["steps"].items()}
    optimizer._counts = {(v.id, v.state_epoch): steps.get(v.id, 0) for group in optimizer._variables for v in group}
    optimizer._skipped.fill_(content["skipped"])


def apply_gradients(registry: Registry, content: Mapping[str, Any], by_name: ByName, fetch: Fetch) -> None:
    """Puts the gradients of an unfinished cycle back where they lay."""
    gradients = registry.gradients
    gradients.zero(True)
    touched = [(name, by_name[name]) for name in content["touched"]]
    if gradients.mode == "views":
        for name, variable in touched:
            assert variable.param.grad is not None
            fetch(f"{GRADS}/{name}", variable.param.grad)
        return
    for dtype in dict.fromkeys(variable.dtype for _, variable in touched):
        gradients.stream(dtype).zero_()
    for name, variable in touched:
        gradients.stream(variable.dtype)  # made here, where no step has made it yet
        fetch(f"{GRADS}/{name}", registry.view(GRADS, variable))
    for name in content["pending"]:
        grad = torch.empty_like(by_name[name].param)
        fetch(f"{PENDING}/{name}", grad)
        by_name[name].param.grad = grad
    gradients.touched = {variable.id for _, variable in touched}
    gradients.spent, gradients.exposed = bool(content["spent"]), False
    if content["fresh"]:
        # Adding nothing takes the norm by the very launch that took it before: another would round differently.
        for part in gradients.plans().parts:
            part.plan.accumulate_([None] * len(part.order), gradients.stream(part.region), 1.0, True)
        gradients.fresh = True


def apply_schedulers(schedulers: Sequence[Any], content: Sequence[Mapping[str, Any]]) -> None:
    for scheduler, saved in zip(schedulers, content, strict=True):
        scheduler.load_state_dict(decode(saved["state"]))
