"""An exponential average of the values, kept by the step of any rule: one more state, and one number of the tile.

    e <- e + (1 - d) (p - e)        p: the value after the step, of which e is a copy where d = 0

With t the number of the variable's update of its average, and d, in float64:

    constant        0 if t = 1, then decay: torch's AveragedModel with an EMA function
    warmup          0 if s = t - after - 1 <= 0, else 1 - (1 + s / gamma)^-power, not below min_decay, not above decay:
                    timm's ModelEmaV3, diffusers' EMAModel
    tensorflow      min(decay, (1 + t) / (10 + t)): tf.train.ExponentialMovingAverage
    power           (1 - 1 / t)^(gamma + 1): Karras et al. 2024, arXiv 2312.02696; the plain mean of all values with
                    gamma 0
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from ..lang import device_function, exp, log, maximum, minimum, where
from .rule import VALUE, Rule
from .stages import Scalars, Statistics

AVERAGE = "ema"
"""The state."""

UPDATES = "ema_updates"
"""Scalar of the variable: updates of its average up to now."""


@device_function
def constant(hyper, t):
    return where(t > 1.0, hyper.ema_decay, 0.0)


@device_function
def warmup(hyper, t):
    s = t - hyper.ema_after - 1.0
    late = s > 0.0
    grown = 1.0 - exp(-hyper.ema_power * log(1.0 + where(late, s, 1.0) / hyper.ema_gamma))
    return where(late, maximum(minimum(grown, hyper.ema_decay), hyper.ema_min_decay), 0.0)


@device_function
def tensorflow(hyper, t):
    return minimum((1.0 + t) / (10.0 + t), hyper.ema_decay)


@device_function
def power(hyper, t):
    later = t > 1.0
    return where(later, exp((hyper.ema_gamma + 1.0) * log(where(later, 1.0 - 1.0 / t, 0.5))), 0.0)


SCHEDULES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "constant": (constant, ("ema_decay",)),
    "warmup": (warmup, ("ema_decay", "ema_min_decay", "ema_gamma", "ema_power", "ema_after")),
    "tensorflow": (tensorflow, ("ema_decay",)),
    "power": (power, ("ema_gamma",)),
}
"""By name: the function above, and the numbers of a param group that it reads."""


def _scalars(decay: Any, inner: Any) -> Any:
    @device_function
    def alone(hyper, step):  # type: ignore[no-untyped-def]
        t = hyper.ema_updates + 1.0
        return 1.0 - decay(hyper, t), t

    @device_function
    def beside(hyper, step):  # type: ignore[no-untyped-def]
        return inner(hyper, step) + alone(hyper, step)

    return alone if inner is None else beside


def _step(function: Any) -> Any:
    @device_function
    def averaged_step(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        value, moved = function(p, g, state[1:], hyper, step)
        e, share = state[0], hyper.ema_share
        return value, (where(share == 1.0, value, e + share * (value - e)),) + moved

    return averaged_step


def _measured(statistics: Statistics | None) -> Statistics | None:
    if statistics is None:
        return None
    function = statistics.function

    @device_function
    def measured(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        return function(p, g, state[1:], hyper, step)

    @device_function
    def moved(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
        terms, states = function(p, g, state[1:], hyper, step)
        return terms, (state[0],) + states

    return replace(statistics, function=moved if statistics.moves else measured)


@cache
def averaged(rule: Rule, schedule: str) -> Rule:
    """The rule with an average of the values as its first state.

    Args:
        schedule: A key of `SCHEDULES`; its numbers are entries of the param groups.
    """
    decay, entries = SCHEDULES[schedule]
    numbers: Any = namedtuple(rule.numbers.__name__, (*rule.numbers._fields, *entries))  # type: ignore[misc]

    def row(group: Mapping[str, Any]) -> tuple[Any, ...]:
        made: tuple[Any, ...] = numbers(*rule.hyper(group), *[group[name] for name in entries])
        return made

    inner = rule.scalars
    names = () if inner is None else inner.names
    return replace(
        rule,
        function=_step(rule.function),
        states=(AVERAGE, *rule.states),
        numbers=numbers,
        hyper=row,
        init={**rule.init, AVERAGE: VALUE},
        own=(*rule.own, UPDATES),
        scalars=Scalars(_scalars(decay, inner and inner.function), (*names, "ema_share", UPDATES)),
        statistics=_measured(rule.statistics),
        stochastic=(*rule.stochastic, AVERAGE),
        exact=(*rule.exact, AVERAGE),
        beside=1,
        decaying=None,
        made=(averaged, (rule, schedule)),
    )


@device_function
def exchange(p, g, state, hyper, step):
    return state[0], (p,)


@device_function
def set_aside(p, g, state, hyper, step):
    return state[0], (state[0], p)


@device_function
def put_back(p, g, state, hyper, step):
    return state[1], state


@device_function
def begin(p, g, state, hyper, step):
    return p, (p,)


class _Nothing(namedtuple("nothing", ())):
    """No numbers."""


def _nothing(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return ()


ASIDE = "held"
"""The values, while the averages are in their place."""

EXCHANGE = Rule("exchange value and average", exchange, (AVERAGE,), _Nothing, _nothing, init={AVERAGE: VALUE})
SET_ASIDE = Rule("average", set_aside, (AVERAGE, ASIDE), _Nothing, _nothing, init={AVERAGE: VALUE})
PUT_BACK = Rule("values", put_back, (AVERAGE, ASIDE), _Nothing, _nothing, init={AVERAGE: VALUE})
BEGIN = Rule("begin an average", begin, (AVERAGE,), _Nothing, _nothing)
