"""Copies of optimizers: deepcopy, pickle and torch.save, together with the store they step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..variables.registry import Registry
from ..variables.variable import Variable

if TYPE_CHECKING:
    from .base import Optimizer

# What `attach` makes anew, and what torch.optim leaves behind as well: hooks, and a scheduler's wrapper of `step`.
LEFT_OUT = {
    "_counts",
    "_frozen",
    "_key",
    "_norm",
    "_params_generation",
    "_plan_keys",
    "_plans",
    "_registry",
    "_states",
    "_states_generation",
    "_steps",
    "_variables",
    "found_inf",
    "grad_scale",
    "param_groups",
    "state",
    "step",
}


def get_state(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer is, without its store's streams: param groups by index, states one by one."""
    plain = {name: value for name, value in optimizer.__dict__.items() if name not in LEFT_OUT}
    plain = {name: value for name, value in plain.items() if not name.endswith("_hooks")}
    counts = optimizer.step_counts()
    steps = {v.index: counts.get((v.id, v.state_epoch), 0) for v in optimizer._members()}
    return {
        "plain": plain,
        "registry": optimizer._registry,
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "members": [[variable.index for variable in group] for group in optimizer._variables],
        "steps": steps,
        "states": {v.index: _states_of(optimizer, v) for v in optimizer._members() if steps[v.index]},
    }


def _states_of(optimizer: Optimizer, variable: Variable) -> dict[str, Tensor]:
    if not variable.spec.trainable:
        return {}
    pairs = zip(optimizer.rule().states, optimizer.state_streams(variable.dtype), strict=True)
    return {name: stream.piece(variable.span) for name, stream in pairs}


@torch.no_grad()
def set_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Makes a new optimizer over the state's registry of what `get_state` gave."""
    registry: Registry = state["registry"]
    torch.optim.Optimizer.__setstate__(optimizer, state["plain"])
    optimizer._attach(registry)
    optimizer._variables = [[registry.variables[i] for i in group] for group in state["members"]]
    pairs = zip(state["groups"], optimizer._variables, strict=True)
    optimizer.param_groups = [{"params": [v.param for v in variables], **group} for group, variables in pairs]
    names = optimizer.rule().states
    for index, copies in state["states"].items():
        variable = registry.variables[index]
        for name, stream in zip(names, optimizer.state_streams(variable.dtype), strict=True):
            if name in copies:
                stream.write(variable.span, copies[name])
    for index, count in state["steps"].items():
        variable = registry.variables[index]
        optimizer._counts[variable.id, variable.state_epoch] = count
