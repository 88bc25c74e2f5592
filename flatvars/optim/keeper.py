"""What the state that an optimizer shows asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..backend import Rule
from ..variables.registry import Registry
from ..variables.variable import Variable
from .states import States


class Keeper(Protocol):
    """What entries ask of their optimizer."""

    registry: Registry
    states: States
    param_groups: list[dict[str, Any]]

    several: bool

    def kept_rule(self, group: Mapping[str, Any] | None = None) -> Rule:
        """The mathematics of its step, and what it keeps beside."""

    def rules(self) -> list[Rule]:
        """Those of all param groups."""

    def rule_for(self, variable: Variable) -> Rule:
        """That of a variable, which may be another for every param group where there are `several`."""

    def names_of(self, variable: Variable) -> tuple[str, ...]:
        """The states that a variable has in its param group."""

    def loose_of(self, variable: Variable) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the states of a variable that lie in no stream."""

    def first_value(self, variable: Variable, name: str) -> Any:
        """What a state or a scalar of a variable begins with: a tensor or a number."""

    def follow(self) -> None:
        """Takes up what was edited in the param groups."""

    def members(self) -> list[Variable]:
        """The variables of all param groups."""
