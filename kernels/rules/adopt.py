"""ADOPT (Taniguchi et al. 2024, arXiv 2411.02853), as the authors' code writes it.

t = 1:  v <- g^2, and nothing else: no decoupled decay either
then:   u = g / max(sqrt(v), eps), within +-(t - 1)^clip_exponent
        m <- m + (1 - beta1) (u - m)    p <- p - lr m
        v <- beta2 v + (1 - beta2) g^2  last: u is made with the one before

Its decay is coupled or decoupled, as each param group says (`decay.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, exp, log, maximum, minimum, sqrt_rn, where
from .adam import MOMENTS
from .decay import either
from .rule import Rule


class AdoptNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    beta2: Any
    keep2: Any  # 1 - beta2
    eps: Any
    clip_exponent: Any  # infinite where nothing is clipped


UNCLIPPED = math.inf


@device_function
def adopt(p, g, state, hyper, step):
    first = step == 1.0
    grown = exp(hyper.clip_exponent * log(step - 1.0))
    bound = where(hyper.clip_exponent < UNCLIPPED, grown, UNCLIPPED)
    u = div_rn(g, maximum(sqrt_rn(state[1]), hyper.eps))
    u = maximum(minimum(u, bound), 0.0 - bound)
    m = state[0] + hyper.keep1 * (u - state[0])
    v = hyper.beta2 * state[1] + hyper.keep2 * g * g
    return where(first, p, p - hyper.lr * m), (where(first, state[0], m), where(first, g * g, v))


def adopt_numbers(group: Mapping[str, Any]) -> AdoptNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    exponent = group["clip_exponent"]
    bound = UNCLIPPED if exponent is None else exponent
    return AdoptNumbers(group["lr"], 1.0 - beta1, beta2, 1.0 - beta2, group["eps"], bound)


ADOPT = either(
    Rule(
        "ADOPT",
        adopt,
        MOMENTS,
        AdoptNumbers,
        adopt_numbers,
        stochastic=("exp_avg_sq",),
        nonnegative=("exp_avg_sq",),
        idle=1,
    )
)
