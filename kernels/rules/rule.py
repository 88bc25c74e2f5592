"""What a rule is: the mathematics of one optimizer on one tile, and the names of what it reads."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..lang import device_function


def _same_names(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    def row(group: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(group[name] for name in names)

    return row


@dataclass(frozen=True)
class Rule:
    """One optimizer's update.

    Attributes:
        name: What error messages and state dicts call it.
        function: Device function `(p, g, state, hyper, step) -> (p, state)` on float32 tiles (float64 for a float64
            region); `state` and `hyper` are tuples, `step` the number of this update, counted from 1.
        states: Names of the state streams, in the order of the `state` tuple; they are the keys of `state_dict`.
        hyper: Maps a param group to the row of numbers that `function` unpacks. Computed on the host in double
            precision and rounded once. A number may be a one-element tensor: it is copied without a synchronization.
        keeps_step: Whether the step count is part of the saved state, as torch's Adam does and its SGD does not.
        native: torch's own operators for the same update, or None; `kernels/eager/native.py` says how it is called.
        native_narrow: Whether they compute in float32 and round once where everything is in float16 or bfloat16.
    """

    name: str
    function: Any
    states: tuple[str, ...]
    hyper: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    native: Callable[..., None] | None = None
    native_narrow: bool = False
    keeps_step: bool = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Rule:
        return self  # code: a copy would be compiled again

    def __reduce__(self) -> tuple[Any, ...]:
        plain = getattr(self.function, "fn", self.function)
        module, name = plain.__module__, plain.__name__
        if getattr(sys.modules.get(module), name, None) is not self:
            raise pickle.PicklingError(
                f"rule {name!r} is code and is pickled by name, but {module}.{name} is not it; define the rule at the "
                "top of a module that can be imported"
            )
        return find_rule, (module, name)


def find_rule(module: str, name: str) -> Rule:
    """The rule that a module defines under a name: how a pickled one comes back."""
    found: Rule = getattr(importlib.import_module(module), name)
    return found


def rule(*, states: Sequence[str] = (), hyper: Sequence[str] = ("lr",)) -> Callable[[Callable[..., Any]], Rule]:
    """Turns a function into a `Rule` that the fused, masked, multi-tensor step runs.

    Args:
        states: Names of the state streams the function reads and returns; they start as zeros.
        hyper: Names of the param-group entries it unpacks from `hyper`, all of them numbers.

    Returns:
        A decorator. The function is `(p, g, state, hyper, step) -> (p, state)`; see `device_function` for what its
        body may use.

    Example:
        >>> @rule(states=("momentum",), hyper=("lr", "beta"))
        ... def signum(p, g, state, hyper, step):
        ...     lr, beta = hyper
        ...     m = beta * state[0] + (1.0 - beta) * g
        ...     return p - lr * tl.where(m > 0.0, 1.0, -1.0), (m,)
    """

    def decorate(function: Callable[..., Any]) -> Rule:
        return Rule(function.__name__, device_function(function), tuple(states), _same_names(tuple(hyper)))

    return decorate
