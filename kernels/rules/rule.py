"""What a rule is: the mathematics of one optimizer on one tile, and the names of what it reads."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..lang import device_function
from .check import check_compiled, check_function, check_names


@dataclass(frozen=True)
class Rule:
    """One optimizer's update.

    Attributes:
        name: What error messages and state dicts call it.
        function: Device function `(p, g, state, hyper, step) -> (p, state)` on float32 tiles (float64 for a float64
            region); `state` is a tuple, `step` the number of this update, counted from 1.
        states: Names of the state streams, in the order of the `state` tuple; they are the keys of `state_dict`.
        numbers: NamedTuple that `function` gets as `hyper`.
        hyper: Maps a param group to such a tuple. Computed on the host in double precision and rounded once. A number
            may be a one-element tensor: it is copied without a synchronization.
        keeps_step: Whether the step count is part of the saved state, as torch's Adam does and its SGD does not.
        names: Of the entries of a param group that a user's rule reads; None for rules that say so themselves.
    """

    name: str
    function: Any
    states: tuple[str, ...]
    numbers: Any
    hyper: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    keeps_step: bool = True
    names: tuple[str, ...] | None = None

    def check(self) -> None:
        """Compiles the rule for CPUs and for GPUs, without a GPU, so that no step has to find out.

        Raises:
            RuleError: names the line that a compiler does not take, and what to write instead.
        """
        check_compiled(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Rule:
        return self  # code: a copy would be compiled again

    def __reduce__(self) -> tuple[Any, ...]:
        module, name = self.function.__module__, self.function.__name__
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
        hyper: Names of the param-group entries it reads as `hyper.name` or unpacks, all of them numbers.

    Returns:
        A decorator. The function is `(p, g, state, hyper, step) -> (p, state)`; see `device_function` for what its
        body may use.

    Raises:
        RuleError: a name or a construct that a rule may not use, with its line.

    Example:
        >>> @rule(states=("momentum",), hyper=("lr", "beta"))
        ... def signum(p, g, state, hyper, step):
        ...     m = hyper.beta * state[0] + (1.0 - hyper.beta) * g
        ...     return p - hyper.lr * tl.where(m > 0.0, 1.0, -1.0), (m,)
    """
    names = tuple(hyper)
    check_names(names, tuple(states))

    def decorate(function: Callable[..., Any]) -> Rule:
        check_function(function, names, tuple(states))
        numbers: Any = namedtuple(f"{function.__name__}_numbers", names)  # type: ignore[misc]

        def row(group: Mapping[str, Any]) -> tuple[Any, ...]:
            made: tuple[Any, ...] = numbers(*[group[name] for name in names])
            return made

        return Rule(function.__name__, device_function(function), tuple(states), numbers, row, names=names)

    return decorate
