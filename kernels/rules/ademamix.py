"""AdEMAMix (Pagliardini, Ablin and Grangier 2024, arXiv 2409.03137), as the authors' code writes it.

m1 <- beta1 m1 + (1 - beta1) g          m2 <- b m2 + (1 - b) g          v as Adam's
p <- p - lr (m1 / (1 - beta1^t) + a m2) / (sqrt(v) / sqrt(1 - beta2^t) + eps)

a grows from 0 to alpha in alpha_warmup steps; b from beta1 to beta3 in beta3_warmup steps, so that the half-life grows
evenly: with f(x) = log(1/2) / log(x + 1e-8) - 1 and share s of the steps, b = (1/2)^(1 / ((1 - s) f(beta1) + s f(beta3)
+ 1)). m2 is not corrected. Its decay is decoupled (`decay.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, exp, minimum, sqrt_rn, where
from .bias import bias_correction, log_of
from .decay import decoupled
from .rule import Rule
from .stages import scalars


class AdEMAMixNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    beta3: Any
    eps: Any
    alpha: Any
    alpha_warmup: Any  # steps; 1 for none
    beta3_warmup: Any
    life1: Any  # f(beta1)
    life3: Any  # f(beta3)


@scalars("fast", "slow", "beta3", "keep3", "scale")
def ademamix_scalars(hyper, step):
    share = step / hyper.beta3_warmup
    life = (1.0 - share) * hyper.life1 + share * hyper.life3
    beta3 = where(step < hyper.beta3_warmup, exp(-0.6931471805599453 / (life + 1.0)), hyper.beta3)
    alpha = hyper.alpha * minimum(step / hyper.alpha_warmup, step / step)
    fast = hyper.lr / bias_correction(step, hyper.log_beta1)
    scale = 1.0 / sqrt_rn(bias_correction(step, hyper.log_beta2))
    return fast, hyper.lr * alpha, beta3, 1.0 - beta3, scale


@device_function
def ademamix(p, g, state, hyper, step):
    fast = state[0] + hyper.keep1 * (g - state[0])
    slow = hyper.beta3 * state[1] + hyper.keep3 * g
    v = hyper.beta2 * state[2] + hyper.keep2 * g * g
    update = hyper.fast * fast + hyper.slow * slow
    return p - div_rn(update, sqrt_rn(v) * hyper.scale + hyper.eps), (fast, slow, v)


def half_life(beta: float) -> float:
    """Of an average, as the authors' code has it."""
    return math.log(0.5) / math.log(beta + 1e-8) - 1.0


def ademamix_numbers(group: Mapping[str, Any]) -> AdEMAMixNumbers:
    beta1, beta2, beta3 = (float(beta) for beta in group["betas"])
    return AdEMAMixNumbers(
        lr=group["lr"],
        keep1=1.0 - beta1,
        log_beta1=log_of(beta1),
        beta2=beta2,
        keep2=1.0 - beta2,
        log_beta2=log_of(beta2),
        beta3=beta3,
        eps=group["eps"],
        alpha=group["alpha"],
        alpha_warmup=group["alpha_warmup"] or 1.0,
        beta3_warmup=group["beta3_warmup"] or 1.0,
        life1=half_life(beta1),
        life3=half_life(beta3),
    )


_STATES = ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")

ADEMAMIX = decoupled(
    Rule(
        "AdEMAMix",
        ademamix,
        _STATES,
        AdEMAMixNumbers,
        ademamix_numbers,
        scalars=ademamix_scalars,
        stochastic=("exp_avg_slow", "exp_avg_sq"),
        nonnegative=("exp_avg_sq",),
    )
)
