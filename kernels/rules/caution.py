"""Cautious updates (Liang et al. 2024, arXiv 2411.16085), for any rule: no element moves against its gradient.

k = [the rule's move goes down the gradient, strictly]                  share = mean of k over the variable
move <- move k / max(share, 1e-3)

In param groups without `cautious`, the rule moves as ever. The gradient is that of this step, without coupled decay.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from ..errors import RuleError
from ..lang import device_function, maximum, where
from .decay import OPTIONS
from .rule import Rule
from .stages import Scalars, Statistics


@device_function
def agreement(move, g):
    """1 where a move goes down a gradient."""
    return where(g > 0.0, where(move < 0.0, 1.0, 0.0), where(g < 0.0, where(move > 0.0, 1.0, 0.0), 0.0))


@device_function
def boosted(hyper, step):
    share = hyper.agreeing / hyper.elements
    return (where(hyper.cautious != 0.0, 1.0 / maximum(share, step / step * 0.001), 1.0),)


def _statistics(function: Any) -> Any:
    @device_function
    def agreeing(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        move, state = function(where(g == g, 0.0, 0.0), g, state, hyper, step)
        return agreement(move, g), g * 0.0 + 1.0

    return agreeing


def _step(function: Any) -> Any:
    @device_function
    def cautious_update(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        move, state = function(where(g == g, 0.0, 0.0), g, state, hyper, step)
        taken = where(hyper.cautious != 0.0, agreement(move, g), 1.0)
        return p + where(taken != 0.0, move * hyper.boost, 0.0), state

    return cautious_update


@cache
def cautious_updates(rule: Rule) -> Rule:
    """The rule with `cautious` as a number of its groups; it must move p by what does not depend on p.

    Raises:
        RuleError: it takes statistics of its own.
    """
    if rule.made is None or rule.made[0] not in OPTIONS.values():
        return _careful(rule)
    option, (plain,) = rule.made
    return option(_careful(plain))


def _careful(rule: Rule) -> Rule:
    if rule.statistics is not None:
        raise RuleError(rule.function, None, "it takes statistics of its own", "leave cautious updates out")
    names = (*rule.numbers._fields, "cautious")
    numbers: Any = namedtuple(rule.numbers.__name__, names)  # type: ignore[misc]

    def row(group: Mapping[str, Any]) -> tuple[Any, ...]:
        made: tuple[Any, ...] = numbers._make((*rule.hyper(group), float(group.get("cautious", False))))
        return made

    sums = Statistics(_statistics(rule.function), ("agreeing", "elements"), Scalars(boosted, ("boost",)))
    return replace(
        rule,
        function=_step(rule.function),
        numbers=numbers,
        hyper=row,
        statistics=sums,
        decaying=None,
        made=(cautious_updates, (rule,)),
    )
