"""From what users pass as `params` to param groups, and to the store they lie in; what groups may say."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import ForeignParameterError
from ..variables.registry import HasRegistry, Registry
from ..variables.selectors import is_selector
from ..variables.variable import Variable
from .homes import given_in, home_of

OPTIONS = ("store", "max_norm", "skip_nonfinite", "state_dtype", "state_format", "stats")
"""Arguments of an optimizer that hold for all of its groups."""


def as_groups(params: Any) -> list[dict[str, Any]]:
    """What users pass as `params`, as a list of new groups; whatever can be read once is read here, and kept.

    Raises:
        TypeError: a tensor, or a set, whose order may be another in every run.
    """
    if isinstance(params, HasRegistry):
        return store_groups(params.registry.variables)
    if isinstance(params, nn.Module):
        raise TypeError(
            f"params is a module ({type(params).__name__}); give its parameters(), its named_parameters(), or the "
            "store of VarStore.from_module(module)"
        )
    if isinstance(params, Tensor):
        raise TypeError("params must be a VarStore, an iterable of parameters or of groups, not Tensor")
    if is_selector(params) or isinstance(params, dict):
        params = [params if isinstance(params, dict) else {"params": params}]
    items = list(params)
    if not items:
        raise ValueError("optimizer got an empty parameter list")
    if not isinstance(items[0], dict):
        items = [{"params": items}]
    return [kept(group) for group in items]


def kept(group: dict[str, Any]) -> dict[str, Any]:
    """A group whose parameters may be read more than once."""
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict, but got {type(group)}")
    params = group["params"]
    if is_selector(params) or isinstance(params, (Tensor, list, tuple, set)):
        return group
    return {**group, "params": list(params)}


def find_registry(params: Any, groups: Iterable[Mapping[str, Any]], store: HasRegistry | None) -> Registry | None:
    """The store an optimizer is for: the one given, that of its parameters, or a new one; None without parameters.

    Raises:
        ForeignParameterError: no store was given, and parameters are given by name, or lie in two.
        SpecError: a parameter that no store can hold.
    """
    if isinstance(params, HasRegistry):
        return params.registry
    if store is not None:
        return store.registry
    for group in groups:
        if is_selector(group["params"]):
            raise ForeignParameterError(
                f"params are name patterns ({group['params']!r}); pass store= to say of which store"
            )
    return home_of([one for group in groups for one in given_in(group)])


def resolved(group: dict[str, Any], registry: Registry, taken: Collection[int]) -> dict[str, Any]:
    """A group for torch.optim.Optimizer: patterns are replaced by the Parameters that no earlier group has.

    Args:
        taken: Identities of the parameters that earlier groups hold.

    Raises:
        ValueError: a pattern fits variables, and earlier groups have them all.
    """
    selector = group["params"]
    if not is_selector(selector):
        return group
    params = [v.whole for v in registry.matching(selector) if not v.is_buffer]
    free = [param for param in params if id(param) not in taken]
    # "*" stands for the rest, of which there may be none.
    if params and not free and selector != "*":
        raise ValueError(
            f"params={selector!r} fits {len(params)} variables, and earlier groups have all of them: the first group "
            "that fits a variable gets it. Put this group before the others, or leave it out"
        )
    return {**group, "params": free}


def check_group_keys(group: Mapping[str, Any], defaults: Mapping[str, Any], kind: str) -> None:
    """Raises ValueError for an entry that means nothing there; keys of others (a scheduler's, a trainer's) are fine."""
    known = [*defaults, "params", "param_names"]
    for key in group:
        if key in known:
            continue
        if key in OPTIONS:
            raise ValueError(
                f"{key!r} is no entry of a param group: it holds for the whole optimizer; pass {kind}(..., {key}=...)"
            )
        close = difflib.get_close_matches(str(key), known, 1, 0.86)
        if close and close[0] not in key:
            raise ValueError(f"a param group of {kind} has no {key!r}; do you mean {close[0]!r}?")


def store_groups(variables: Iterable[Variable]) -> list[dict[str, Any]]:
    """One param group for each group number up to the largest of the variables, empty ones too; at least one."""
    groups: list[dict[str, Any]] = [{"params": []}]
    for variable in variables:
        if not variable.is_buffer:
            while len(groups) <= variable.group:
                groups.append({"params": []})
            groups[variable.group]["params"].append(variable.whole)
    return groups
