"""Adamax (Kingma and Ba 2015, arXiv 1412.6980, section 7.1), as torch.optim.Adamax writes it.

m <- m + (1 - beta1) (g - m)            u <- max(beta2 u, |g| + eps), NaN of NaN
p <- p - lr / (1 - beta1^t) * m / u

Its decay is coupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import absolute, device_function, div_rn, maximum
from .bias import bias_correction, log_of
from .decay import coupled
from .rule import Rule


class AdamaxNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    beta2: Any
    eps: Any


@device_function
def adamax(p, g, state, hyper, step):
    step_size = div_rn(hyper.lr, bias_correction(step, hyper.log_beta1))
    m = state[0] + hyper.keep1 * (g - state[0])
    u = maximum(hyper.beta2 * state[1], absolute(g) + hyper.eps)
    return p - step_size * div_rn(m, u), (m, u)


def adamax_numbers(group: Mapping[str, Any]) -> AdamaxNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return AdamaxNumbers(group["lr"], 1.0 - beta1, log_of(beta1), beta2, group["eps"])


ADAMAX = coupled(
    Rule(
        "Adamax",
        adamax,
        ("exp_avg", "exp_inf"),
        AdamaxNumbers,
        adamax_numbers,
        stochastic=("exp_inf",),
        nonnegative=("exp_inf",),
    )
)
