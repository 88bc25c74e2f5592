"""Adan (Xie et al. 2022, arXiv 2208.06677), as the authors' code writes it; its betas are 1 - those of the paper.

d = g - (g of the step before), 0 at the first                          q = g + beta2 d
m <- m + (1 - beta1) (g - m)            w <- w + (1 - beta2) (d - w)    n <- beta3 n + (1 - beta3) q^2
p <- p - lr (m / (1 - beta1^t) + beta2 w / (1 - beta2^t)) / (sqrt(n) / sqrt(1 - beta3^t) + eps)

The gradient that is kept is the clipped one, negated as in the authors' state dicts. Its decay is proximal, or
decoupled where a param group says `no_prox` (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, sqrt_rn, where
from .bias import bias_correction, log_of
from .decay import proximal
from .rule import Rule


class AdanNumbers(NamedTuple):
    lr: Any
    beta2: Any
    keep1: Any  # 1 - beta1
    keep2: Any  # 1 - beta2
    beta3: Any
    keep3: Any  # 1 - beta3
    log_beta1: Any
    log_beta2: Any
    log_beta3: Any
    eps: Any


@device_function
def adan(p, g, state, hyper, step):
    of_average = div_rn(hyper.lr, bias_correction(step, hyper.log_beta1))
    of_difference = div_rn(hyper.lr * hyper.beta2, bias_correction(step, hyper.log_beta2))
    scale = div_rn(1.0, sqrt_rn(bias_correction(step, hyper.log_beta3)))
    d = where(step == 1.0, 0.0, g + state[3])
    q = g + hyper.beta2 * d
    m = state[0] + hyper.keep1 * (g - state[0])
    w = state[1] + hyper.keep2 * (d - state[1])
    n = hyper.beta3 * state[2] + hyper.keep3 * q * q
    update = of_average * m + of_difference * w
    return p - div_rn(update, sqrt_rn(n) * scale + hyper.eps), (m, w, n, 0.0 - g)


def adan_numbers(group: Mapping[str, Any]) -> AdanNumbers:
    beta1, beta2, beta3 = (float(beta) for beta in group["betas"])
    return AdanNumbers(
        lr=group["lr"],
        beta2=beta2,
        keep1=1.0 - beta1,
        keep2=1.0 - beta2,
        beta3=beta3,
        keep3=1.0 - beta3,
        log_beta1=log_of(beta1),
        log_beta2=log_of(beta2),
        log_beta3=log_of(beta3),
        eps=group["eps"],
    )


_STATES = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")

ADAN = proximal(
    Rule("Adan", adan, _STATES, AdanNumbers, adan_numbers, stochastic=("exp_avg_sq",), nonnegative=("exp_avg_sq",))
)
