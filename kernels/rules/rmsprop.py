"""RMSprop, plain, with momentum, and centered, as torch.optim.RMSprop writes it.

v <- alpha v + (1 - alpha) g^2                          (Tieleman and Hinton 2012, lecture 6.5)
a <- a + (1 - alpha) (g - a)                            centered (Graves 2013, arXiv 1308.0850)
u <- g / (sqrt(v) + eps)                                centered: v - a^2 is under the root
b <- momentum b + u                                     with momentum: u is b
p <- p - lr u

Its decay is coupled (`decay.py`). As in torch, v - a^2 of a gradient that hardly changes can round below zero: its root
is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, sqrt_rn, where
from .decay import coupled
from .rule import Rule


class RMSpropNumbers(NamedTuple):
    lr: Any
    alpha: Any
    keep: Any  # 1 - alpha
    eps: Any
    momentum: Any
    centered: Any  # 1 where the average is subtracted


@device_function
def squares(g, v, hyper):
    return hyper.alpha * v + hyper.keep * g * g


@device_function
def center(g, v, a, hyper):
    """The average, and what goes under the root; a group that is not centered keeps the one and uses v."""
    moved = a + hyper.keep * (g - a)
    return where(hyper.centered != 0.0, moved, a), where(hyper.centered != 0.0, v - moved * moved, v)


@device_function
def gather_speed(update, b, hyper):
    """The buffer, and the update; a group without momentum touches no buffer."""
    faster = hyper.momentum * b + update
    return where(hyper.momentum != 0.0, faster, b), where(hyper.momentum != 0.0, faster, update)


@device_function
def rmsprop(p, g, state, hyper, step):
    v = squares(g, state[0], hyper)
    return p - hyper.lr * div_rn(g, sqrt_rn(v) + hyper.eps), (v,)


@device_function
def rmsprop_momentum(p, g, state, hyper, step):
    v = squares(g, state[0], hyper)
    b, update = gather_speed(div_rn(g, sqrt_rn(v) + hyper.eps), state[1], hyper)
    return p - hyper.lr * update, (v, b)


@device_function
def rmsprop_centered(p, g, state, hyper, step):
    v = squares(g, state[0], hyper)
    a, spread = center(g, v, state[1], hyper)
    return p - hyper.lr * div_rn(g, sqrt_rn(spread) + hyper.eps), (v, a)


@device_function
def rmsprop_centered_momentum(p, g, state, hyper, step):
    v = squares(g, state[0], hyper)
    a, spread = center(g, v, state[2], hyper)
    b, update = gather_speed(div_rn(g, sqrt_rn(spread) + hyper.eps), state[1], hyper)
    return p - hyper.lr * update, (v, b, a)


def rmsprop_numbers(group: Mapping[str, Any]) -> RMSpropNumbers:
    alpha = float(group["alpha"])
    return RMSpropNumbers(
        lr=group["lr"],
        alpha=alpha,
        keep=1.0 - alpha,
        eps=group["eps"],
        momentum=group["momentum"],
        centered=float(group["centered"]),
    )


_STATES = ("square_avg", "momentum_buffer", "grad_avg")


def _rule(name: str, function: Any, states: tuple[str, ...]) -> Rule:
    return coupled(
        Rule(
            name,
            function,
            states,
            RMSpropNumbers,
            rmsprop_numbers,
            stochastic=("square_avg",),
            nonnegative=("square_avg",),
        )
    )


RMSPROP = _rule("RMSprop", rmsprop, _STATES[:1])
RMSPROP_MOMENTUM = _rule("RMSprop(momentum)", rmsprop_momentum, _STATES[:2])
RMSPROP_CENTERED = _rule("RMSprop(centered)", rmsprop_centered, _STATES[::2])
RMSPROP_CENTERED_MOMENTUM = _rule("RMSprop(centered, momentum)", rmsprop_centered_momentum, _STATES)
