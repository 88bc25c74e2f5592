"""MARS-AdamW (Yuan et al. 2024, arXiv 2411.10438), in its approximate form, as the authors' code writes it.

c = g + gamma beta1 / (1 - beta1) (g - g of the step before, 0 at the first)
c <- c / max(1, |c|), the norm over the variable        m, v as Adam's, of c
p <- p - lr (m / (1 - beta1^t)) / (sqrt(v) / sqrt(1 - beta2^t) + eps)

The gradient is kept by the step itself, as a copy. A param group with gamma = 0 is AdamW, which the authors take for
variables of one dimension. Its decay is decoupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, maximum, sqrt_rn, where
from .adam import average, descend
from .bias import log_of
from .decay import decoupled
from .rule import Rule
from .stages import scalars, statistics


class MarsNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any
    pull: Any  # gamma beta1 / (1 - beta1)


@device_function
def corrected(g, before, hyper, step):
    return g + hyper.pull * (g - where(step == 1.0, 0.0, before))


@scalars("shrink")
def shrunk(hyper, step):
    norm = sqrt_rn(hyper.squares)
    return (where(hyper.pull != 0.0, 1.0 / maximum(norm, step / step), step / step),)


@statistics("squares", scalars=shrunk)
def measured(p, g, state, hyper, step):
    c = corrected(g, state[2], hyper, step)
    return (c * c,)


@device_function
def mars(p, g, state, hyper, step):
    c = corrected(g, state[2], hyper, step) * hyper.shrink
    m, v = average(c, state[0], state[1], hyper)
    return descend(p, m, v, hyper, step), (m, v, g)


def mars_numbers(group: Mapping[str, Any]) -> MarsNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    pull = group["gamma"] * beta1 / (1.0 - beta1)
    return MarsNumbers(group["lr"], 1.0 - beta1, log_of(beta1), beta2, 1.0 - beta2, log_of(beta2), group["eps"], pull)


_STATES = ("exp_avg", "exp_avg_sq", "last_grad")

MARS = decoupled(
    Rule(
        "MARS",
        mars,
        _STATES,
        MarsNumbers,
        mars_numbers,
        statistics=measured,
        stochastic=("exp_avg_sq",),
        nonnegative=("exp_avg_sq",),
    )
)
