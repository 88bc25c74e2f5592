"""RAdam (Liu et al. 2020, arXiv 1908.03265), as torch.optim.RAdam writes it.

m, v as Adam's                          limit = 2 / (1 - beta2) - 1
rho = limit - 2 t beta2^t / (1 - beta2^t)
rho > 5:    p <- p - lr / (1 - beta1^t) m * sqrt(1 - beta2^t) / (sqrt(v) + eps)
                   * sqrt((rho - 4) (rho - 2) limit / ((limit - 4) (limit - 2) rho))
else:       p <- p - lr / (1 - beta1^t) m

eps meets the root before its bias is corrected, unlike in Adam. In float32, rho would lose 8e-5 of the factor: it is
one of the scalars. Its decay is coupled or decoupled, as each param group says (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, exp, sqrt_rn, where
from .adam import MOMENTS, average
from .bias import bias_correction, log_of
from .decay import either
from .rule import Rule
from .stages import scalars


class RAdamNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any


@scalars("step_size", "rectified")
def radam_scalars(hyper, step):
    correction = bias_correction(step, hyper.log_beta2)
    limit = 2.0 / hyper.keep2 - 1.0
    rho = limit - 2.0 * step * exp(step * hyper.log_beta2) / correction
    rectified = where(rho > 5.0, 1.0, 0.0)
    squared = (rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho)
    factor = sqrt_rn(where(rho > 5.0, squared * correction, 1.0))
    return hyper.lr / bias_correction(step, hyper.log_beta1) * factor, rectified


@device_function
def radam(p, g, state, hyper, step):
    m, v = average(g, state[0], state[1], hyper)
    root = where(hyper.rectified != 0.0, sqrt_rn(v) + hyper.eps, 1.0)
    return p - hyper.step_size * div_rn(m, root), (m, v)


def radam_numbers(group: Mapping[str, Any]) -> RAdamNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return RAdamNumbers(group["lr"], 1.0 - beta1, log_of(beta1), beta2, 1.0 - beta2, log_of(beta2), group["eps"])


RADAM = either(
    Rule(
        "RAdam",
        radam,
        MOMENTS,
        RAdamNumbers,
        radam_numbers,
        scalars=radam_scalars,
        stochastic=("exp_avg_sq",),
        nonnegative=("exp_avg_sq",),
    )
)
