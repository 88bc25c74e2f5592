"""Grams (Cao, Li and Song 2024, arXiv 2412.17107): Adam's magnitude with the gradient's direction.

m, v as Adam's
p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) sign(g) |m| / (sqrt(v) + eps)

Its decay is decoupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import absolute, device_function, div_rn, sqrt_rn, where
from .adam import MOMENTS, average
from .bias import bias_correction, log_of
from .decay import decoupled
from .rule import Rule


class GramsNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any


@device_function
def grams(p, g, state, hyper, step):
    m, v = average(g, state[0], state[1], hyper)
    root = sqrt_rn(bias_correction(step, hyper.log_beta2))
    step_size = div_rn(hyper.lr * root, bias_correction(step, hyper.log_beta1))
    size = step_size * div_rn(absolute(m), sqrt_rn(v) + hyper.eps)
    return p - where(g == 0.0, 0.0, where(g < 0.0, 0.0 - size, size)), (m, v)


def grams_numbers(group: Mapping[str, Any]) -> GramsNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return GramsNumbers(group["lr"], 1.0 - beta1, log_of(beta1), beta2, 1.0 - beta2, log_of(beta2), group["eps"])


GRAMS = decoupled(
    Rule("Grams", grams, MOMENTS, GramsNumbers, grams_numbers, stochastic=("exp_avg_sq",), nonnegative=("exp_avg_sq",))
)
