"""StableAdamW (Wortsman et al. 2023, arXiv 2304.13013), as optimi writes it.

b1, b2: betas of averages without bias, b = (beta - beta^t) / (1 - beta^t)
m <- m + (1 - b1) (g - m)               v <- b2 v + (1 - b2) g^2
rho = sqrt(mean over the variable of g^2 / max(v, eps^2))               l = lr / max(1, rho)
p <- p - l m / (sqrt(v) + eps)

Its decay is decoupled, by l (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, maximum, sqrt_rn
from .adam import MOMENTS
from .bias import bias_correction, log_of
from .decay import decoupled
from .rule import Rule
from .stages import scalars, statistics


class StableAdamWNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any


@scalars("keep1", "keep2")
def unbiased(hyper, step):
    keep1 = hyper.keep1 / bias_correction(step, hyper.log_beta1)
    return keep1, hyper.keep2 / bias_correction(step, hyper.log_beta2)


@device_function
def squares(g, v, hyper):
    return (1.0 - hyper.keep2) * v + hyper.keep2 * g * g


@scalars("lr")
def slowed(hyper, step):
    rho = sqrt_rn(hyper.ratios / hyper.count)
    return (hyper.lr / maximum(rho, step / step),)


@statistics("ratios", "count", scalars=slowed)
def measured(p, g, state, hyper, step):
    ratio = div_rn(g * g, maximum(squares(g, state[1], hyper), hyper.eps * hyper.eps))
    return ratio, g * 0.0 + 1.0


@device_function
def stable_adamw(p, g, state, hyper, step):
    m = state[0] + hyper.keep1 * (g - state[0])
    v = squares(g, state[1], hyper)
    return p - hyper.lr * div_rn(m, sqrt_rn(v) + hyper.eps), (m, v)


def stable_adamw_numbers(group: Mapping[str, Any]) -> StableAdamWNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return StableAdamWNumbers(group["lr"], 1.0 - beta1, log_of(beta1), 1.0 - beta2, log_of(beta2), group["eps"])


STABLE_ADAMW = decoupled(
    Rule(
        "StableAdamW",
        stable_adamw,
        MOMENTS,
        StableAdamWNumbers,
        stable_adamw_numbers,
        scalars=unbiased,
        statistics=measured,
        stochastic=("exp_avg_sq",),
        nonnegative=("exp_avg_sq",),
    )
)
