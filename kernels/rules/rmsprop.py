"""RMSprop, plain, with momentum, and centered, as torch.optim.RMSprop writes it.

g <- sign g + weight_decay p
v <- alpha v + (1 - alpha) g^2                          (Tieleman and Hinton 2012, lecture 6.5)
a <- a + (1 - alpha) (g - a)                            centered (Graves 2013, arXiv 1308.0850)
u <- g / (sqrt(v) + eps)                                centered: v - a^2 is under the root
b <- momentum b + u                                     with momentum: u is b
p <- p - lr u

As in torch, v - a^2 of a gradient that hardly changes can round below zero: its root is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..eager.native import native_rmsprop
from ..lang import device_function, div_rn, sqrt_rn, tl
from .rule import Rule


@device_function
def decayed(p, g, hyper):  # type: ignore[no-untyped-def]
    """Hyper 1 is weight_decay, 7 the sign of maximize."""
    return hyper[7] * g + hyper[1] * p


@device_function
def squares(g, v, hyper):  # type: ignore[no-untyped-def]
    lr, weight_decay, alpha, keep, eps, momentum, centered, sign = hyper
    return alpha * v + keep * g * g


@device_function
def center(g, v, a, hyper):  # type: ignore[no-untyped-def]
    """The average, and what goes under the root; a group that is not centered keeps the one and uses v."""
    lr, weight_decay, alpha, keep, eps, momentum, centered, sign = hyper
    moved = a + keep * (g - a)
    return tl.where(centered != 0.0, moved, a), tl.where(centered != 0.0, v - moved * moved, v)


@device_function
def gather_speed(update, b, hyper):  # type: ignore[no-untyped-def]
    """The buffer, and the update; a group without momentum touches no buffer."""
    lr, weight_decay, alpha, keep, eps, momentum, centered, sign = hyper
    faster = momentum * b + update
    return tl.where(momentum != 0.0, faster, b), tl.where(momentum != 0.0, faster, update)


@device_function
def rmsprop(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    g = decayed(p, g, hyper)
    v = squares(g, state[0], hyper)
    return p - hyper[0] * div_rn(g, sqrt_rn(v) + hyper[4]), (v,)


@device_function
def rmsprop_momentum(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    g = decayed(p, g, hyper)
    v = squares(g, state[0], hyper)
    b, update = gather_speed(div_rn(g, sqrt_rn(v) + hyper[4]), state[1], hyper)
    return p - hyper[0] * update, (v, b)


@device_function
def rmsprop_centered(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    g = decayed(p, g, hyper)
    v = squares(g, state[0], hyper)
    a, spread = center(g, v, state[1], hyper)
    return p - hyper[0] * div_rn(g, sqrt_rn(spread) + hyper[4]), (v, a)


@device_function
def rmsprop_centered_momentum(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    g = decayed(p, g, hyper)
    v = squares(g, state[0], hyper)
    a, spread = center(g, v, state[2], hyper)
    b, update = gather_speed(div_rn(g, sqrt_rn(spread) + hyper[4]), state[1], hyper)
    return p - hyper[0] * update, (v, b, a)


def rmsprop_hyper(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Row of RMSprop: lr 0, weight_decay 1, alpha 2, 1-alpha 3, eps 4, momentum 5, centered 6, sign 7."""
    alpha = float(group["alpha"])
    sign = -1.0 if group["maximize"] else 1.0
    average = (alpha, 1.0 - alpha, group["eps"])
    return (group["lr"], group["weight_decay"], *average, group["momentum"], float(group["centered"]), sign)


_STATES = ("square_avg", "momentum_buffer", "grad_avg")


def _rule(name: str, function: Any, states: tuple[str, ...]) -> Rule:
    return Rule(name, function, states, rmsprop_hyper, native_rmsprop(states))


RMSPROP = _rule("RMSprop", rmsprop, _STATES[:1])
RMSPROP_MOMENTUM = _rule("RMSprop(momentum)", rmsprop_momentum, _STATES[:2])
RMSPROP_CENTERED = _rule("RMSprop(centered)", rmsprop_centered, _STATES[::2])
RMSPROP_CENTERED_MOMENTUM = _rule("RMSprop(centered, momentum)", rmsprop_centered_momentum, _STATES)
