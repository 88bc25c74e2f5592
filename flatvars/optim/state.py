"""Optimizer state per parameter: views of the streams, and torch.optim's state dict both ways."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..variables.registry import variable_of
from ..variables.variable import Variable

if TYPE_CHECKING:
    from .base import Optimizer


class OptimizerState(MutableMapping[Tensor, dict[str, Any]]):
    """`optimizer.state`: parameter to a dict of its step count and views of its state; {} before its first step.

    Looking synchronizes: step counts live on the device. Writing a dict copies it into the streams.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        # Weak: the optimizer owns this object.
        self._reference = weakref.ref(optimizer)

    @property
    def _optimizer(self) -> Optimizer:
        optimizer = self._reference()
        assert optimizer is not None
        return optimizer

    def __getitem__(self, param: Tensor) -> dict[str, Any]:
        optimizer, variable = self._optimizer, self._variable(param)
        optimizer._join()
        for group, variables in zip(optimizer.param_groups, optimizer._variables, strict=True):
            if any(v is variable for v in variables):
                return read_state(optimizer, variable, group, optimizer.step_counts())
        return {}

    def __setitem__(self, param: Tensor, state: dict[str, Any]) -> None:
        write_states(self._optimizer, {self._variable(param).id: state})

    def __delitem__(self, param: Tensor) -> None:
        self[param] = {}

    def __iter__(self) -> Iterator[Tensor]:
        counts = self._optimizer.step_counts()
        return (p for group in self._optimizer.param_groups for p in group["params"] if self._count(p, counts))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _count(self, param: Tensor, counts: Mapping[tuple[int, int], int]) -> int:
        return steps_of(self._variable(param), counts)

    def _variable(self, param: Tensor) -> Variable:
        found = variable_of(param)
        if found is None or found[0] is not self._optimizer._registry:
            raise KeyError("the parameter lies in another store, or in none, so this optimizer has no state for it")
        return found[1]


def steps_of(variable: Variable, counts: Mapping[tuple[int, int], int]) -> int:
    return counts.get((variable.id, variable.state_epoch), 0)


def read_state(
    optimizer: Optimizer, variable: Variable, group: Mapping[str, Any], counts: Mapping[tuple[int, int], int]
) -> dict[str, Any]:
    """One variable's state with torch's keys; views, so they follow every step."""
    count = steps_of(variable, counts)
    if not count or not variable.spec.trainable:
        return {}
    rule = optimizer.rule()
    streams = optimizer.state_streams(variable.dtype)
    state: dict[str, Any] = {"step": torch.tensor(float(count))} if rule.keeps_step else {}
    of_group = optimizer.state_names(group)
    pairs = zip(rule.states, streams, strict=True)
    state.update({name: stream.piece(variable.span) for name, stream in pairs if name in of_group})
    return state


def check_shapes(variables: Mapping[int, Variable], states: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises ValueError for a state of another shape than its variable's."""
    for key, state in states.items():
        for name, value in state.items():
            shape = tuple(variables[key].shape)
            if isinstance(value, Tensor) and name != "step" and tuple(value.shape) != shape:
                raise ValueError(
                    f"{name!r} of variable {variables[key].name!r} has shape {tuple(value.shape)}, "
                    f"but the variable has {shape}"
                )


def write_states(optimizer: Optimizer, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Copies states by variable id into the streams; what a state does not name becomes zero.

    Raises:
        ValueError: a state of another shape; nothing has changed then.
    """
    variables = {v.id: v for group in optimizer._variables for v in group}
    check_shapes(variables, states)
    names = optimizer.rule().states
    optimizer._retire_plans()
    for key, state in states.items():
        variable = variables[key]
        if not variable.spec.trainable:
            continue
        for name, stream in zip(names, optimizer.state_streams(variable.dtype), strict=True):
            stream.write(variable.span, state.get(name))
        # torch's SGD saves no count; a momentum buffer says that a first step was taken.
        known = any(state.get(name) is not None for name in names)
        optimizer._counts[variable.id, variable.state_epoch] = int(state["step"]) if "step" in state else int(known)


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """torch.optim's format, by its hooks' rules."""
    for pre_hook in optimizer._optimizer_state_dict_pre_hooks.values():
        pre_hook(optimizer)
    counts = optimizer.step_counts()
    state: dict[int, dict[str, Any]] = {}
    groups = []
    index = 0
    for group, variables in zip(optimizer.param_groups, optimizer._variables, strict=True):
        packed = {key: value for key, value in group.items() if key != "params"}
        packed["params"] = list(range(index, index + len(variables)))
        groups.append(packed)
        for variable in variables:
            entry = read_state(optimizer, variable, group, counts)
            if entry:
                state[index] = entry
            index += 1
    result: dict[str, Any] = {"state": state, "param_groups": groups}
    for post_hook in optimizer._optimizer_state_dict_post_hooks.values():
        changed = post_hook(optimizer, result)
        result = result if changed is None else changed
    return result


def load_state_dict(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Loads torch.optim's format; group hyper-parameters are replaced, states copied."""
    state_dict = dict(state_dict)
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = pre_hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    saved_groups = deepcopy(state_dict["param_groups"])
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    order: dict[Any, Variable] = {}
    for saved, variables in zip(saved_groups, optimizer._variables, strict=True):
        if len(saved["params"]) != len(variables):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
            )
        order.update(zip(saved["params"], variables, strict=True))
    absent: dict[str, Any] = {}
    states = {variable.id: state_dict["state"].get(key, absent) for key, variable in order.items()}
    check_shapes({variable.id: variable for variable in order.values()}, states)
    # The groups first: they say which rule, and so which states there are.
    for group, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    write_states(optimizer, states)
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)
