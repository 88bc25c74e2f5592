"""Membership: which variables an optimizer steps. `param_groups` is the truth, whoever edits it and in whatever way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..backend import are_same
from ..errors import ForeignParameterError
from ..variables.lazy import is_lazy
from ..variables.registry import Registry, variable_of
from ..variables.selectors import Selector, as_select, fits
from ..variables.variable import Variable

Groups = list[dict[str, Any]]


class Membership:
    """The variables of an optimizer's param groups.

    Args:
        registry: Of the store; Parameters of others are foreign.

    Attributes:
        groups: Variables of each param group, in the order of its parameters; a new list when one is edited.
        group_of: Param group of each variable, by id.
        version: Grows when another set of variables is stepped, or with another group's numbers.
        by_number: Whether variables that are declared later join the group of their number.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.groups: list[list[Variable]] = []
        self.group_of: dict[int, dict[str, Any]] = {}
        self.version = 0
        self.by_number = False
        self._selectors: list[tuple[dict[str, Any], Selector]] = []
        self.foreign: list[Tensor] = []
        self.lazy: list[Tensor] = []  # without a shape: stepped as soon as they have one
        self._members: list[Variable] = []
        self._known: list[list[Tensor]] = []
        self._params: dict[int, Tensor] = {}  # of each variable that is or was a member, when last looked at
        self._generation = -1
        self._seen = registry._next_id

    def members(self) -> list[Variable]:
        """Of all groups; the same list as long as these are the same."""
        return self._members

    def select(self, group: dict[str, Any], selector: Selector) -> None:
        """Variables that are declared later join a group if its selector fits them."""
        self._selectors.append((group, selector))

    def selectors(self, groups: Groups) -> list[Selector]:
        """Of each group; None for one that was given its parameters one by one."""
        found = {id(group): selector for group, selector in self._selectors}
        return [found.get(id(group)) for group in groups]

    def follow(self, groups: Groups, add_group: Callable[[dict[str, Any]], None]) -> list[Variable]:
        """Takes up what was edited, declared or replaced since the last time: about 1 ns a variable if nothing was.

        Args:
            add_group: Makes a param group out of the defaults.

        Returns:
            Variables whose Parameter the user exchanged for another one in the groups: they begin anew.

        Raises:
            ValueError: a parameter stands in the groups twice.
        """
        moved = self._generation != self.registry.generation
        if moved:
            for group in groups:
                params_of(group)  # makes a list of what is none
            self.renew(groups)
        if self._seen != self.registry._next_id:
            self._join(groups, add_group)
        if not moved and self.is_followed(groups):
            return []
        self._generation = self.registry.generation
        return self._resolve(groups)

    def is_followed(self, groups: Groups) -> bool:
        """Whether nothing was edited, declared or replaced since the last time, and nothing lazy got a shape."""
        registry = self.registry
        if self._generation != registry.generation or self._seen != registry._next_id:
            return False
        if len(groups) != len(self._known) or (self.lazy and not all(map(is_lazy, self.lazy))):
            return False
        for group, known in zip(groups, self._known, strict=True):
            params = group["params"]
            if params.__class__ is not list or not are_same(params, known):
                return False
        return True

    def renew(self, groups: Groups) -> None:
        """A Parameter that the store took in takes the place of the old one; one that the store gave away leaves.

        What users have edited meanwhile, in whatever form, is followed at the next look.
        """
        lists = [group["params"] for group in groups if isinstance(group.get("params"), list)]
        gone = {id(self._params[v.id]) for v in self.members() if v.index < 0}
        for params in lists if gone else ():
            params[:] = [param for param in params if id(param) not in gone]
        stale = {
            id(self._params[v.id]): v for v in self.members() if v.index >= 0 and v.whole is not self._params[v.id]
        }
        if not stale:
            return
        listed = {id(param) for params in lists for param in params}
        for params in lists:
            for i, param in enumerate(params):
                variable = stale.get(id(param))
                if variable is not None and id(variable.whole) not in listed:
                    params[i] = self._params[variable.id] = variable.whole

    def _join(self, groups: Groups, add_group: Callable[[dict[str, Any]], None]) -> None:
        """Takes up the variables that were declared since the last time; groups they number are made of defaults."""
        new = [variable for variable in self.registry.variables if variable.id >= self._seen]
        self._seen = self.registry._next_id
        listed = {id(param) for group in groups for param in params_of(group)}
        for variable in new:
            if variable.is_buffer or id(variable.whole) in listed:
                continue
            number = variable.group if self.by_number else self._selected(groups, variable)
            if number is None:
                continue
            while len(groups) <= number:
                add_group({"params": []})
            _insert(params_of(groups[number]), variable)

    def _selected(self, groups: Groups, variable: Variable) -> int | None:
        """The first group with a selector that fits the variable."""
        for number, selector in enumerate(self.selectors(groups)):
            if selector is not None and fits(variable, as_select(selector)):
                return number
        return None

    def _resolve(self, groups: Groups) -> list[Variable]:
        """Finds the variables of all groups."""
        found: list[list[Variable]] = []
        known: list[list[Tensor]] = []
        group_of: dict[int, dict[str, Any]] = {}
        foreign: list[Tensor] = []
        lazy: list[Tensor] = []
        for params, group in zip(list(map(unnamed, groups)), groups, strict=True):
            known.append(list(params))
            found.append([])
            for param in params:
                if is_lazy(param):
                    lazy.append(param)
                    continue
                entry = variable_of(param)
                if entry is None or entry[0] is not self.registry:
                    foreign.append(param)
                    continue
                variable = entry[1]
                if variable.id in group_of:
                    raise ValueError(
                        f"some parameters appear in more than one parameter group, or twice in one: {variable.name!r}; "
                        "every variable takes one step"
                    )
                group_of[variable.id] = group
                found[-1].append(variable)
        self._selectors = [pair for pair in self._selectors if any(pair[0] is group for group in groups)]
        if found != self.groups or any(group is not self.group_of.get(key) for key, group in group_of.items()):
            self.version += 1
            self.groups = found
            self._members = [variable for group in found for variable in group]
        self.group_of, self._known, self.foreign, self.lazy = group_of, known, foreign, lazy
        members = self.members()
        exchanged = [v for v in members if self._params.get(v.id, v.whole) is not v.whole]
        self._params.update((v.id, v.whole) for v in members)
        return exchanged

    def look_again(self) -> None:
        """Makes the next `follow` find the variables of all groups anew: a store took in what was foreign."""
        self._known = []


def _insert(params: list[Tensor], variable: Variable) -> None:
    """Puts a variable behind all others, or, if it was lazy, before those that follow it in its module."""
    behind = (k for k, one in enumerate(params) if (found := variable_of(one)) and found[1].index > variable.index)
    params.insert(next(behind, len(params)), variable.whole)


def params_of(group: dict[str, Any]) -> list[Tensor]:
    """A group's parameters as the list they must be: users may have put a tuple there, an iterator, one tensor."""
    params = group["params"]
    if isinstance(params, str):
        raise TypeError(explain_entry(params))
    if not isinstance(params, list):
        params = group["params"] = [params] if isinstance(params, Tensor) else list(params)
    return params


def unnamed(group: dict[str, Any]) -> list[Tensor]:
    """A group's parameters, of which users may have made pairs with their names, as `named_parameters` gives them.

    Raises:
        TypeError: neither.
    """
    params = params_of(group)
    pairs = [isinstance(p, tuple) and len(p) == 2 and isinstance(p[1], Tensor) for p in params]
    for param, is_pair in zip(params, pairs, strict=True):
        if not is_pair and not isinstance(param, Tensor):
            raise TypeError(explain_entry(param))
    if any(pairs):
        named: Any = params
        group["params"] = params = [p[1] if is_pair else p for p, is_pair in zip(named, pairs, strict=True)]
        if all(pairs):
            group["param_names"] = [name for name, _ in named]
    return params


def explain_entry(entry: Any) -> str:
    """What is wrong with an entry of a group's parameters."""
    return (
        f"optimizer can only optimize Tensors, but one of the params is {entry!r}, a {type(entry).__name__}; give "
        "Parameters, or pairs of names and Parameters. A group whose `params` are name patterns alone is made by "
        "add_param_group, or by the optimizer with store="
    )


def explain_foreign(param: Tensor, registry: Registry | None, consequence: str) -> None:
    """Raises ForeignParameterError for a parameter that a store does not hold."""
    about = f"a parameter of shape {tuple(param.shape)}"
    found = variable_of(param)
    if found is not None:
        raise ForeignParameterError(
            f"{about} lies in another store, and an optimizer steps one: adopt both modules into one store with "
            "store.add_module(module, prefix) when they are built, or move the variables of both into a new store with "
            f"VarStore.merge([store, (other, 'prefix.')]), and make the optimizer for that; {consequence}"
        )
    raise ForeignParameterError(
        f"{about} lies in no store. If it replaced another one in its module, call store.rebind(), which takes it in "
        "under the same name; a new one is taken in by store.add(name, parameter), and a whole module by "
        f"VarStore.from_module(module) or store.add_module(module); {consequence}"
    )


def by_rows(groups: Sequence[Sequence[Variable]]) -> list[tuple[Variable, int]]:
    """Variables with the number of their group."""
    return [(variable, number) for number, group in enumerate(groups) for variable in group]
