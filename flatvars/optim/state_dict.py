"""torch.optim's state dict, both ways."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from ..memory.streams import own_storage
from ..variables.lazy import is_lazy
from ..variables.variable import Variable
from .entry import STEP
from .membership import params_of
from .recording import Recorded, hyper_of


class Saved(Recorded, Protocol):
    """What a state dict asks of an optimizer: the hooks of torch.optim are among it."""

    known_states: tuple[str, ...]
    average_numbers: dict[str, Any]
    needs_step: bool
    several: bool

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states of a param group, without what is kept beside them."""

    def defaults_of(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What a param group must have."""

    def loose_states(
        self, shape: tuple[int, ...], group: Mapping[str, Any], names: Iterable[str]
    ) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the states that lie in no stream."""

    defaults: dict[str, Any]

    def after_load(self) -> None:
        """Called when loaded groups are in place."""

    _optimizer_state_dict_pre_hooks: Any
    _optimizer_state_dict_post_hooks: Any
    _optimizer_load_state_dict_pre_hooks: Any
    _optimizer_load_state_dict_post_hooks: Any


def state_dict(optimizer: Saved) -> dict[str, Any]:
    """torch.optim's format, by its hooks' rules."""
    for pre_hook in optimizer._optimizer_state_dict_pre_hooks.values():
        pre_hook(optimizer)
    optimizer.follow()
    optimizer.entries.settle()
    entries = optimizer.entries.shown()
    steps = optimizer.states.steps.cpu() + 0.0  # without a sign of zero
    state: dict[Any, Any] = {}
    groups: list[dict[str, Any]] = []
    index = 0
    by_param = {id(v.whole): v for v in optimizer.members()}
    for group in optimizer.param_groups:
        params = params_of(group)
        groups.append({**hyper_of(group), "params": list(range(index, index + len(params)))})
        for param in params:
            variable = by_param.get(id(param))
            entry = optimizer.entries.other(param) if variable is None else entries.get(variable.id)
            if entry:
                state[index] = dict(entry)
                if variable is not None and STEP in entry and STEP not in entry.loose:
                    row = optimizer.states.slots[variable.id]
                    state[index][STEP] = own_storage(steps[row : row + 1]).view(())  # on the host, as torch's
            index += 1
    state.update(optimizer.entries.plain())
    result: dict[str, Any] = {"state": state, "param_groups": groups}
    for post_hook in optimizer._optimizer_state_dict_post_hooks.values():
        changed = post_hook(optimizer, result)
        result = result if changed is None else changed
    return result


def load_state_dict(optimizer: Saved, state_dict: Mapping[str, Any]) -> None:
    """Loads torch.optim's format; group hyper-parameters are replaced, states copied. All is checked first."""
    optimizer.follow()
    state_dict = dict(state_dict)
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = pre_hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    groups = deepcopy(state_dict["param_groups"])
    check_sizes(optimizer.param_groups, groups)
    states = states_of_groups(optimizer.param_groups, groups, state_dict["state"])
    check_groups(optimizer, groups)
    check_states(optimizer, groups, states)
    # The groups first: they say which rule, and so which states there are.
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    optimizer.after_load()
    by_param = {id(v.whole): v for v in optimizer.members()}
    pairs = [pair for some in states for pair in some]
    found = {by_param[id(param)]: state for param, state in pairs if id(param) in by_param}
    rules = {variable: optimizer.rule_for(variable) for variable in found}
    kept = {variable: (*rule.states, *rule.own) for variable, rule in rules.items()}
    optimizer.entries.replace({v: with_own_tensors(v, state, kept[v]) for v, state in found.items()})
    for param, state in pairs:
        if id(param) not in by_param and state:
            optimizer.entries[param] = deepcopy(dict(state))
    indices = {index for saved in state_dict["param_groups"] for index in saved["params"]}
    for key, value in state_dict["state"].items():
        if key not in indices:
            optimizer.entries[key] = value
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


SavedStates = list[tuple[Tensor, Mapping[str, Any]]]
"""Parameters with what was saved of them."""


def states_of_groups(
    mine: list[dict[str, Any]], saved: list[dict[str, Any]], state: Mapping[Any, Any]
) -> list[SavedStates]:
    """Of each group. A step count that was saved once for a whole group, as apex does, is that of its parameters."""
    found: list[SavedStates] = []
    for group, theirs in zip(mine, saved, strict=True):
        shared = {} if STEP in group or STEP not in theirs else {STEP: theirs.pop(STEP)}
        pairs = [(param, state.get(index, {})) for param, index in zip(params_of(group), theirs["params"], strict=True)]
        found.append([(param, {**shared, **one} if one and shared else one) for param, one in pairs])
    return found


def with_own_tensors(variable: Variable, state: Mapping[str, Any], streams: tuple[str, ...]) -> dict[str, Any]:
    """A state, with copies of the tensors that no stream will copy."""
    in_streams = streams if variable.spec.has_room else ()
    return {k: v.clone() if isinstance(v, Tensor) and k not in in_streams else v for k, v in state.items()}


# Checks -----------------------------------------------------------------------------------------------------------

STATES_OF_OTHERS = {
    "Adam, AdamW or NAdam": {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "mu_product"},
    "SGD": {"momentum_buffer"},
    "RMSprop": {"square_avg", "grad_avg"},
    "Adagrad": {"sum"},
    "Adadelta": {"acc_delta"},
    "Adamax": {"exp_inf"},
    "Rprop": {"prev", "step_size"},
    "Adafactor": {"row_var", "col_var", "variance"},
}
"""By who keeps them: what tells that a state is another optimizer's."""


def check_sizes(mine: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Raises ValueError, in torch's words, for other numbers of groups or parameters."""
    if len(saved) != len(mine):
        raise ValueError("loaded state dict has a different number of parameter groups")
    if any(len(params_of(group)) != len(theirs["params"]) for group, theirs in zip(mine, saved, strict=True)):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
        )


def check_groups(optimizer: Saved, saved: list[dict[str, Any]]) -> None:
    """Raises ValueError for groups without a number that the class needs, or TypeError, with a number that is none."""
    kind = type(optimizer).__name__
    for number, (mine, group) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        for key, value in optimizer.defaults_of({**mine, **group}).items():
            if key not in group and not isinstance(value, bool) and value is not None:
                raise ValueError(
                    f"the loaded state dict is no {kind}'s: its param group {number} has no {key!r}, but "
                    f"{', '.join(map(repr, (k for k in group if k != 'params')))}; nothing was changed"
                )
        try:
            whole = {**mine, **group} if optimizer.several else {**optimizer.average_numbers, **group}
            optimizer.check_changed(whole, waits=True)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param group {number} of the loaded state dict: {error}; nothing was changed") from None


def check_value(about: str, name: Any, value: Any, shape: tuple[int, ...] | None) -> None:
    """Raises ValueError for what cannot be a state of this shape, or, with None, one number."""
    problem = None
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            kind = f"{str(value.layout).removeprefix('torch.')} of {value.dtype} on {value.device}"
            problem = f"is {kind} in the loaded state; give a dense tensor of real numbers"
        elif value.numel() != 1 if shape is None else tuple(value.shape) != shape:
            wanted = "it is one number" if shape is None else f"the variable has {shape}"
            problem = f"has shape {tuple(value.shape)} in the loaded state, but {wanted}"
    elif shape is not None and value is not None:
        problem = f"is {value!r} in the loaded state, and no tensor"
    elif shape is None and not isinstance(value, Real):
        problem = f"is {value!r} in the loaded state, and no number"
    if problem is None and name == STEP and not 0.0 <= float(value) < math.inf:
        problem = f"is {float(value)} in the loaded state, which is no count of steps"
    if problem is not None:
        raise ValueError(f"{name!r} of {about} {problem}; nothing was changed")


def check_states(optimizer: Saved, saved: list[dict[str, Any]], states: list[SavedStates]) -> None:
    """Raises ValueError for states of another optimizer's, or of other shapes."""
    kind = type(optimizer).__name__
    names = {v.whole: v.name for v in optimizer.members()}
    all_names = {v.whole: v.names for v in optimizer.members()}
    for group, theirs, pairs in zip(optimizer.param_groups, saved, states, strict=True):
        rule, kept = optimizer.rule_of({**group, **theirs}), optimizer.kept_rule({**group, **theirs})
        known = {*(() if optimizer.several else optimizer.known_states), *kept.states, *kept.own}
        needed = (*optimizer.state_names({**group, **theirs}), *rule.own)
        for param, state in pairs:
            if not isinstance(state, Mapping):
                raise ValueError(f"the loaded state of a parameter is {state!r}, no dict; nothing was changed")
            if not state:
                continue
            if is_lazy(param):
                raise ValueError(
                    "the loaded state dict has state of a lazy parameter, which has no shape here yet; run a forward "
                    "pass first; nothing was changed"
                )
            about = f"{kind} cannot go on from the loaded state of {names.get(param, 'a parameter')!r}"
            for owner, foreign in STATES_OF_OTHERS.items():
                if strange := [name for name in state if name in foreign and name not in known]:
                    raise ValueError(f"{about}: {strange[0]!r} is a state of {owner}; nothing was changed")
            loose = optimizer.loose_states(tuple(param.shape), {**group, **theirs}, all_names.get(param, ()))
            missing = [name for name in (*needed, *loose) if name not in state]
            needs_step = rule.keeps_step if optimizer.several else optimizer.needs_step
            missing += [STEP] if needs_step and STEP not in state else []
            if missing:
                raise ValueError(f"{about}: it has no {missing[0]!r}, but {list(state)}; nothing was changed")
            for name in {*known, *loose, STEP} & set(state):
                shape = None if name in (STEP, *kept.own) else loose.get(name, tuple(param.shape))
                check_value(f"variable {names.get(param)!r}", name, state[name], shape)
