"""NAdam (Dozat 2016), as torch.optim.NAdam writes it.

mu(t) = beta1 (1 - 0.96^(t momentum_decay) / 2)         P <- P mu(t), a scalar of the variable that begins as 1
m, v as Adam's                                          r = sqrt(v / (1 - beta2^t)) + eps
p <- p - lr ((1 - mu(t)) / (1 - P) g + mu(t + 1) / (1 - P mu(t + 1)) m) / r

P is stored, not computed from t: a schedule may change the betas. Its decay is coupled or decoupled, as each param
group says (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, exp, sqrt_rn
from .adam import MOMENTS, average
from .bias import bias_correction, log_of
from .decay import either
from .rule import Rule
from .stages import scalars


class NAdamNumbers(NamedTuple):
    lr: Any
    beta1: Any
    keep1: Any  # 1 - beta1
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any
    log_decay: Any  # momentum_decay * log(0.96)


@device_function
def momentum(step, hyper):
    return hyper.beta1 * (1.0 - 0.5 * exp(step * hyper.log_decay))


@scalars("of_gradient", "of_average", "scale", "mu_product")
def nadam_scalars(hyper, step):
    mu, following = momentum(step, hyper), momentum(step + 1.0, hyper)
    product = hyper.mu_product * mu
    scale = 1.0 / sqrt_rn(bias_correction(step, hyper.log_beta2))
    of_gradient = hyper.lr * (1.0 - mu) / (1.0 - product)
    return of_gradient, hyper.lr * following / (1.0 - product * following), scale, product


@device_function
def nadam(p, g, state, hyper, step):
    m, v = average(g, state[0], state[1], hyper)
    update = hyper.of_gradient * g + hyper.of_average * m
    return p - div_rn(update, sqrt_rn(v) * hyper.scale + hyper.eps), (m, v)


def nadam_numbers(group: Mapping[str, Any]) -> NAdamNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return NAdamNumbers(
        lr=group["lr"],
        beta1=beta1,
        keep1=1.0 - beta1,
        beta2=beta2,
        keep2=1.0 - beta2,
        log_beta2=log_of(beta2),
        eps=group["eps"],
        log_decay=group["momentum_decay"] * log_of(0.96),
    )


NADAM = either(
    Rule(
        "NAdam",
        nadam,
        MOMENTS,
        NAdamNumbers,
        nadam_numbers,
        init={"mu_product": 1.0},
        own=("mu_product",),
        scalars=nadam_scalars,
        stochastic=("exp_avg_sq",),
        nonnegative=("exp_avg_sq",),
    )
)
