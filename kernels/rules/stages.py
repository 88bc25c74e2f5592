"""Stages of a rule: what is computed of a variable before its elements are looked at, and how names find numbers."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..lang import device_function
from .check import check_names, check_scalars, check_statistics


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


@dataclass(frozen=True)
class Statistics:
    """Sums over all elements of a variable that train, taken in a launch of their own before the step.

    Attributes:
        function: Device function `(p, g, state, hyper, step) -> terms`, a tuple of a number for each element, of which
            the sums are taken; `-> (terms, state)` if it `moves`.
        names: Of the sums.
        scalars: What is made of the sums, in float64, for the step: its `hyper` holds them, and the numbers of the
            group, the variable's own and those of the rule's scalars.
        moves: Whether it updates the states; the step then leaves them as they are.
    """

    function: Any
    names: tuple[str, ...]
    scalars: Scalars | None = None
    moves: bool = False


def statistics(
    *names: str, scalars: Scalars | None = None, moves: bool = False
) -> Callable[[Callable[..., Any]], Statistics]:
    """Turns a function into the `Statistics` of a rule: sums over a variable that its step depends on.

    They are taken in one launch before the step, in a fixed order that depends on no layout, and of elements that train
    alone: a term of 1 counts them. The rule, and `scalars`, read the sums as `hyper.name`.

    Args:
        names: Of the sums.
        scalars: Made by the decorator of that name: numbers that follow from the sums.
        moves: The function updates the states and returns `(terms, state)`; the rule returns states as they are.

    Returns:
        A decorator. The function is `(p, g, state, hyper, step) -> (terms)`, a tuple of as many terms as names.

    Raises:
        RuleError: a construct that a rule may not use, with its line.
        ValueError: a name that cannot be one.

    Example:
        >>> @statistics("squares", "count")
        ... def measured(p, g, state, hyper, step):
        ...     return g * g, g * 0.0 + 1.0
    """
    check_names(names, (), "statistics")

    def decorate(function: Callable[..., Any]) -> Statistics:
        check_statistics(function)
        return Statistics(device_function(function), names, scalars, moves)

    return decorate


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
