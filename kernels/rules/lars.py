"""LARS (You, Gitman and Ginsburg 2017, arXiv 1708.03888), and LARC, which clips the rate.

r = trust_coeff |p| / (|g| + weight_decay |p| + eps) over the variable, 1 where a norm is 0; with trust_clip at most lr,
    and relative to it
g <- (g + weight_decay p) r
b <- g at the first step, else momentum b + (1 - dampening) g           p <- p - lr (g + momentum b if nesterov else b)

The decay is coupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, minimum, sqrt_rn, where
from .decay import coupled
from .rule import Rule
from .stages import scalars, statistics


class LarsNumbers(NamedTuple):
    lr: Any
    momentum: Any
    keep: Any  # 1 - dampening
    nesterov: Any
    trust_coeff: Any
    trust_clip: Any
    eps: Any


@scalars("trust")
def trusted(hyper, step):
    value, gradient = sqrt_rn(hyper.of_value), sqrt_rn(hyper.of_gradient)
    both = (value > 0.0) & (gradient > 0.0)
    ratio = hyper.trust_coeff * value / where(both, gradient + hyper.weight_decay * value + hyper.eps, step)
    ratio = where(both, ratio, step / step)
    return (where(hyper.trust_clip != 0.0, minimum(ratio / hyper.lr, step / step), ratio),)


@statistics("of_value", "of_gradient", scalars=trusted)
def measured(p, g, state, hyper, step):
    return p * p, g * g


@device_function
def lars(p, g, state, hyper, step):
    g = g * hyper.trust
    buffer = where(step == 1.0, g, hyper.momentum * state[0] + hyper.keep * g)
    update = where(hyper.nesterov != 0.0, g + hyper.momentum * buffer, buffer)
    return p - hyper.lr * update, (buffer,)


def lars_numbers(group: Mapping[str, Any]) -> LarsNumbers:
    return LarsNumbers(
        lr=group["lr"],
        momentum=group["momentum"],
        keep=1.0 - group["dampening"],
        nesterov=float(group["nesterov"]),
        trust_coeff=group["trust_coeff"],
        trust_clip=float(group["trust_clip"]),
        eps=group["eps"],
    )


LARS = coupled(Rule("LARS", lars, ("momentum_buffer",), LarsNumbers, lars_numbers, statistics=measured))
