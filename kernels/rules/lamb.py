"""LAMB (You et al. 2020, arXiv 1904.00962), as apex writes it.

m <- beta1 m + k g, with k = 1 - beta1, or 1 without grad_averaging     v <- beta2 v + (1 - beta2) g^2
u = (m / (1 - beta1^t)) / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay p, without the corrections if not asked for
p <- p - lr r u         r = |p| / |u| over the variable; 1 where either is 0, or without decay unless always_adapt

The moments move where the norms are taken; the step makes u of them once more, and reads no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, sqrt_rn, where
from .adam import MOMENTS
from .bias import bias_correction, log_of
from .decay import ascending
from .rule import Rule
from .stages import scalars, statistics


class LambNumbers(NamedTuple):
    lr: Any
    weight_decay: Any
    beta1: Any
    keep1: Any
    log_beta1: Any  # -inf for no correction
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any
    adapts: Any  # 0 for a ratio of 1


@scalars("average", "scale")
def corrections(hyper, step):
    average = 1.0 / bias_correction(step, hyper.log_beta1)
    return average, 1.0 / sqrt_rn(bias_correction(step, hyper.log_beta2))


@device_function
def direction(p, m, v, hyper):
    return div_rn(hyper.average * m, sqrt_rn(v) * hyper.scale + hyper.eps) + hyper.weight_decay * p


@scalars("lr")
def trusted(hyper, step):
    both = (hyper.of_value > 0.0) & (hyper.of_step > 0.0)
    ratio = sqrt_rn(hyper.of_value / where(both, hyper.of_step, step))
    return (hyper.lr * where(both & (hyper.adapts != 0.0), ratio, 1.0),)


@statistics("of_value", "of_step", scalars=trusted, moves=True)
def moved(p, g, state, hyper, step):
    m = hyper.beta1 * state[0] + hyper.keep1 * g
    v = hyper.beta2 * state[1] + hyper.keep2 * g * g
    u = direction(p, m, v, hyper)
    return (p * p, u * u), (m, v)


@device_function
def lamb(p, g, state, hyper, step):
    return p - hyper.lr * direction(p, state[0], state[1], hyper), state


def lamb_numbers(group: Mapping[str, Any]) -> LambNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    corrected = group["bias_correction"]
    return LambNumbers(
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        beta1=beta1,
        keep1=1.0 - beta1 if group["grad_averaging"] else 1.0,
        log_beta1=log_of(beta1 if corrected else 0.0),
        beta2=beta2,
        keep2=1.0 - beta2,
        log_beta2=log_of(beta2 if corrected else 0.0),
        eps=group["eps"],
        adapts=float(bool(group["weight_decay"]) or group["always_adapt"]),
    )


LAMB = ascending(
    Rule(
        "LAMB",
        lamb,
        MOMENTS,
        LambNumbers,
        lamb_numbers,
        scalars=corrections,
        statistics=moved,
        stochastic=("exp_avg_sq",),
        nonnegative=("exp_avg_sq",),
    )
)
