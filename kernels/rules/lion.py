"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

u <- sign(beta1 m + (1 - beta1) g)      m <- beta2 m + (1 - beta2) g
p <- p - lr u

Its decay is decoupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, sign
from .decay import decoupled
from .rule import Rule


class LionNumbers(NamedTuple):
    lr: Any
    beta1: Any
    keep1: Any  # 1 - beta1
    beta2: Any
    keep2: Any  # 1 - beta2


@device_function
def lion(p, g, state, hyper, step):
    direction = sign(hyper.beta1 * state[0] + hyper.keep1 * g)
    moved = hyper.beta2 * state[0] + hyper.keep2 * g
    return p - hyper.lr * direction, (moved,)


@device_function
def decaying_lion(p, g, state, hyper, step):
    g = hyper.ascent * g
    direction = sign(hyper.beta1 * state[0] + hyper.keep1 * g)
    moved = hyper.beta2 * state[0] + hyper.keep2 * g
    return p * (1.0 - hyper.lr * hyper.weight_decay) - hyper.lr * direction, (moved,)


def lion_numbers(group: Mapping[str, Any]) -> LionNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return LionNumbers(group["lr"], beta1, 1.0 - beta1, beta2, 1.0 - beta2)


LION = decoupled(Rule("Lion", lion, ("exp_avg",), LionNumbers, lion_numbers, decaying=decaying_lion))
