"""Training state put back: flags, optimizers, gradients of an unfinished cycle, schedulers; checked first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..gradients.attached import gradients_of
from ..gradients.cycle import GradientSnapshot
from ..gradients.freezing import follow_flags
from ..variables.registry import Registry
from ..variables.variable import Variable
from .plain import decode

if TYPE_CHECKING:
    from ..optim.base import Optimizer

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
    follow_flags(registry)


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
    names = {variable.id: name for name, variable in by_name.items()}
    # Files of before there were cycles hold gradients of the stream that a step had used as well.
    found = [] if content["spent"] else content["touched"]
    snapshot = GradientSnapshot(
        content["mode"],
        [by_name[name] for name in found],
        [by_name[name] for name in content["pending"]],
        content["fresh"],
    )
    gradients_of(registry).restore(
        snapshot, lambda kind, variable, target: fetch(f"{kind}/{names[variable.id]}", target)
    )


def apply_schedulers(schedulers: Sequence[Any], content: Sequence[Mapping[str, Any]]) -> None:
    for scheduler, saved in zip(schedulers, content, strict=True):
        scheduler.load_state_dict(decode(saved["state"]))
