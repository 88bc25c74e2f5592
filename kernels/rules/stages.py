"""Stages of a rule: what is computed of a variable before its elements are looked at, and how names find numbers."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..lang import device_function
from .check import check_names, check_scalars


@dataclass(frozen=True)
class Fields:
    """A named tuple, and which of the numbers that were gathered are in it.

    Attributes:
        type: The named tuple.
        picks: Position of each field among what was gathered.
    """

    type: Any
    picks: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        found: tuple[str, ...] = self.type._fields
        return found


@cache
def gathered(*parts: tuple[str, ...]) -> Fields:
    """The fields of several lists of names in a row; of a name that comes twice, the last one counts."""
    places = {name: place for place, name in enumerate(name for part in parts for name in part)}
    return Fields(namedtuple("numbers", places), tuple(places.values()))  # type: ignore[misc]


@dataclass(frozen=True)
class Scalars:
    """Numbers of one step of a variable that all its elements share.

    Attributes:
        function: Device function `(hyper, step) -> numbers`, a tuple, in float64: run once a tile.
        names: Of its results. One that is a name of the group as well takes its place.
    """

    function: Any
    names: tuple[str, ...]


def scalars(*names: str) -> Callable[[Callable[..., Any]], Scalars]:
    """Turns a function into the `Scalars` of a rule: what need not be computed for every element, nor in float32.

    Args:
        names: Of the numbers it returns. The rule reads them as `hyper.name`; one that names a number of the param
            group takes its place; one that the rule lists as `own` is there again in the variable's next step.

    Returns:
        A decorator. The function is `(hyper, step) -> (numbers)`, with a tuple of as many numbers as names.

    Raises:
        RuleError: a construct that a rule may not use, with its line.
        ValueError: a name that cannot be one.

    Example:
        >>> @scalars("lr")
        ... def warmed(hyper, step):
        ...     return (hyper.lr * tl.minimum(step / hyper.warmup, step / step),)
    """
    check_names(names, (), "scalars")

    def decorate(function: Callable[..., Any]) -> Scalars:
        check_scalars(function, names)
        return Scalars(device_function(function), names)

    return decorate
