"""From what users pass as `params` to param groups of Parameters, and to the store they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import ForeignParameterError
from ..variables.registry import HasRegistry, Registry, variable_of
from ..variables.selectors import Selector, as_select, fits, is_selector
from ..variables.variable import Variable


def find_registry(params: Any, store: HasRegistry | None) -> Registry:
    """The store an optimizer is for: the one given, or that of the first parameter.

    Raises:
        ForeignParameterError: no store was given, and the parameters lie in none.
    """
    if isinstance(params, HasRegistry):
        return params.registry
    if store is not None:
        return store.registry
    if isinstance(params, (Tensor, str)):
        raise TypeError(f"params must be a VarStore, an iterable of parameters or groups, not {type(params).__name__}")
    params = list(params) if not isinstance(params, (list, tuple)) else params
    for param in _tensors(params):
        found = variable_of(param)
        if found is None:
            raise ForeignParameterError(
                f"a parameter of shape {tuple(param.shape)} and dtype {param.dtype} lies in no store; adopt its module "
                "first: store = flatvars.VarStore.from_module(module)"
            )
        return found[0]
    raise ForeignParameterError("no parameter was given to tell the store by; pass store=, or the store as params")


def _tensors(params: Iterable[Any]) -> Iterable[Tensor]:
    for item in params:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
            yield item[1]
        elif isinstance(item, dict):
            inner = item["params"]
            if is_selector(inner):
                raise ForeignParameterError(f"params are name patterns ({inner!r}); pass store= to say of which store")
            yield from _tensors([inner] if isinstance(inner, Tensor) else inner)


def resolve_params(params: Any, registry: Registry, taken: Callable[[], set[int]]) -> list[Any]:
    """Groups for torch.optim.Optimizer, with patterns replaced by Parameters.

    Args:
        params: As users pass them.
        registry: Of the store.
        taken: Ids of the variables that earlier groups of the optimizer hold already: patterns skip those.
    """
    if isinstance(params, HasRegistry):
        return store_groups(registry.variables)
    if is_selector(params):
        params = [{"params": params}]
    used = set(taken())
    resolved = []
    for group in params:
        if isinstance(group, dict) and is_selector(group["params"]):
            free = [v for v in registry.matching(group["params"]) if v.id not in used]
            used |= {v.id for v in free}
            group = {**group, "params": _parameters(free)}
        resolved.append(group)
    return resolved


def store_groups(variables: Iterable[Variable]) -> list[dict[str, Any]]:
    """One param group for each group number up to the largest of the variables, empty ones too; at least one."""
    groups: list[dict[str, Any]] = [{"params": []}]
    for variable in variables:
        if isinstance(variable.param, nn.Parameter):
            while len(groups) <= variable.group:
                groups.append({"params": []})
            groups[variable.group]["params"].append(variable.param)
    return groups


def selectors_of(params: Any) -> list[Selector]:
    """For each group that `params` makes: what selects its variables, None if they were given one by one."""
    if isinstance(params, HasRegistry):
        return []
    if is_selector(params):
        return [params]
    groups = [params] if isinstance(params, dict) else params
    if not all(isinstance(group, dict) for group in groups):
        return [None]
    return [group["params"] if is_selector(group["params"]) else None for group in groups]


def group_of(variable: Variable, selectors: list[Selector]) -> int | None:
    """The first group with a selector that fits the variable."""
    for number, selector in enumerate(selectors):
        if selector is not None and fits(variable, as_select(selector)):
            return number
    return None


def _parameters(variables: Iterable[Variable]) -> list[Any]:
    return [v.param for v in variables if isinstance(v.param, nn.Parameter)]
