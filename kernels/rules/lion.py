"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

u <- sign(beta1 m + (1 - beta1) g)      m <- beta2 m + (1 - beta2) g
p <- p (1 - lr weight_decay) - lr u
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, sign
from .rule import Rule


class LionNumbers(NamedTuple):
    lr: Any
    weight_decay: Any
    beta1: Any
    keep1: Any  # 1 - beta1
    beta2: Any
    keep2: Any  # 1 - beta2
    ascent: Any  # -1 to maximize


@device_function
def lion(p, g, state, hyper, step):
    g = hyper.ascent * g
    blend = hyper.beta1 * state[0] + hyper.keep1 * g
    moved = hyper.beta2 * state[0] + hyper.keep2 * g
    return p * (1.0 - hyper.lr * hyper.weight_decay) - hyper.lr * sign(blend), (moved,)


def lion_numbers(group: Mapping[str, Any]) -> LionNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    ascent = -1.0 if group["maximize"] else 1.0
    return LionNumbers(group["lr"], group["weight_decay"], beta1, 1.0 - beta1, beta2, 1.0 - beta2, ascent)


LION = Rule("Lion", lion, ("exp_avg",), LionNumbers, lion_numbers)
