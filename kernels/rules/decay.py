"""Weight decay and ascent, for any rule: each makes a rule of a rule, which knows of neither.

    coupled         g <- g + weight_decay p                         a part of the gradient, if not 0
    decoupled       p <- p (1 - lr weight_decay), then the rule     (Loshchilov and Hutter 2019, arXiv 1711.05101)
    either          the one or the other, as `decoupled_weight_decay` of the param group says
    cautious        decoupled, but in groups with `cautious_decay` only where the rule moves p towards 0, or not
                    at all                                          (Chen et al. 2025, arXiv 2510.12402)
    proximal        the rule, then p <- p / (1 + lr weight_decay)   (Xie et al. 2022, arXiv 2208.06677); decoupled in
                    groups with `no_prox`
    ascending       none

With all of them, the rule sees -g in the param groups that maximize. `lr` is what the rule steps with: its scalars may
have made another one of the group's.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from ..lang import device_function, div_rn, where
from .rule import Rule
from .stages import Statistics

# Closures: a compiler reads what it finds in their cells as it reads a global.


def _rate(idle: int) -> Any:
    """Share of a value that decays in a step; none while the rule gathers alone."""
    first = idle + 0.5

    @device_function
    def rate(hyper, step):  # type: ignore[no-untyped-def]
        return hyper.lr * hyper.weight_decay

    @device_function
    def later_rate(hyper, step):  # type: ignore[no-untyped-def]
        return where(step > first, hyper.lr * hyper.weight_decay, 0.0)

    return later_rate if idle else rate


def _coupled(function: Any, rate: Any) -> Any:
    @device_function
    def coupled_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        # A decay of 0 is none: 0 times an infinite p, as that of an attention mask, is NaN.
        g = hyper.ascent * g
        return function(p, where(hyper.weight_decay == 0.0, g, g + hyper.weight_decay * p), state, hyper, step)

    return coupled_step


def _decoupled(function: Any, rate: Any) -> Any:
    @device_function
    def decoupled_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        return function(p * (1.0 - rate(hyper, step)), hyper.ascent * g, state, hyper, step)

    return decoupled_step


def _either(function: Any, rate: Any) -> Any:
    @device_function
    def either_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        apart, none = hyper.decoupled_weight_decay != 0.0, hyper.weight_decay == 0.0
        left = where(apart, p * (1.0 - rate(hyper, step)), p)
        g = hyper.ascent * g
        pulled = where(apart | none, g, g + hyper.weight_decay * p)
        return function(left, pulled, state, hyper, step)

    return either_step


def _cautious(function: Any, rate: Any) -> Any:
    @device_function
    def cautious_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        # From zeros, a rule returns its move: beside a large p a small one would be lost, and its sign with it.
        move, state = function(where(g == g, 0.0, 0.0), hyper.ascent * g, state, hyper, step)
        towards = ((move <= 0.0) & (p >= 0.0)) | ((move >= 0.0) & (p <= 0.0))
        share = rate(hyper, step)
        always = where(hyper.cautious_decay == 0.0, share, 0.0)
        return p * (1.0 - where(towards, share, always)) + move, state

    return cautious_step


def _proximal(function: Any, rate: Any) -> Any:
    @device_function
    def proximal_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        ahead, share = hyper.no_prox != 0.0, rate(hyper, step)
        # Numbers of the tile: an element takes two multiplications, one of them by 1.
        before, behind = where(ahead, 1.0 - share, 1.0), where(ahead, 1.0, div_rn(1.0, 1.0 + share))
        p, state = function(p * before, hyper.ascent * g, state, hyper, step)
        return p * behind, state

    return proximal_step


def _ascending(function: Any, rate: Any) -> Any:
    @device_function
    def ascending_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        return function(p, hyper.ascent * g, state, hyper, step)

    return ascending_step


def _measured(statistics: Statistics | None) -> Statistics | None:
    """Statistics see the gradient as the rule does, but for its decay."""
    if statistics is None:
        return None
    function = statistics.function

    @device_function
    def ascending_statistics(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        return function(p, hyper.ascent * g, state, hyper, step)

    return replace(statistics, function=ascending_statistics)


def _option(wrap: Callable[[Any, Any], Any], *entries: str) -> Callable[[Rule], Rule]:
    """A way from rule to rule; `entries` of a param group become numbers, if the rule has not got them."""

    @cache
    def option(rule: Rule) -> Rule:
        known = rule.numbers._fields
        added = tuple(name for name in (*entries, "ascent") if name not in known)
        numbers: Any = namedtuple(rule.numbers.__name__, (*known, *added))  # type: ignore[misc]

        def row(group: Mapping[str, Any]) -> tuple[Any, ...]:
            made: tuple[Any, ...] = numbers(*rule.hyper(group), *[_entry(group, name) for name in added])
            return made

        apart = rule.decaying if wrap is _decoupled else None
        function = wrap(rule.function, _rate(rule.idle)) if apart is None else apart
        names = None if rule.names is None else tuple(dict.fromkeys((*rule.names, *entries)))
        return replace(
            rule,
            function=function,
            numbers=numbers,
            hyper=row,
            names=names,
            statistics=_measured(rule.statistics),
            made=(option, (rule,)),
        )

    return option


def _entry(group: Mapping[str, Any], name: str) -> Any:
    if name == "ascent":
        return -1.0 if group.get("maximize", False) else 1.0
    value = group[name] if name == "weight_decay" else group.get(name, False)
    return float(value) if isinstance(value, bool) else 0.0 if value is None else value


coupled = _option(_coupled, "weight_decay")
decoupled = _option(_decoupled, "weight_decay")
either = _option(_either, "weight_decay", "decoupled_weight_decay")
cautious = _option(_cautious, "weight_decay", "cautious_decay")
proximal = _option(_proximal, "weight_decay", "no_prox")
ascending = _option(_ascending)

OPTIONS = {
    "coupled": coupled,
    "decoupled": decoupled,
    "either": either,
    "cautious": cautious,
    "proximal": proximal,
    "none": ascending,
}
"""By name."""


@cache
def with_decay(rule: Rule, kind: str) -> Rule:
    """The rule with another kind of decay than it has, or with one if it has none.

    Args:
        kind: A key of `OPTIONS`. "cautious" is for rules that move p by what does not depend on p.
    """
    if rule.made is not None and rule.made[0] in OPTIONS.values():
        rule = rule.made[1][0]
    return OPTIONS[kind](rule)
