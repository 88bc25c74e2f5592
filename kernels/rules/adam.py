"""Adam, AdamW and their AMSGrad variants.

Formula (Kingma and Ba 2015, arXiv 1412.6980; decoupled decay: Loshchilov and Hutter 2019, arXiv 1711.05101; AMSGrad:
Reddi, Kale and Kumar 2018, arXiv 1904.09237), as torch.optim writes it:

    m <- m + (1 - beta1) (g - m)            v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

Adam adds weight_decay * p to g first; AdamW multiplies p by 1 - lr * weight_decay first. AMSGrad puts the running
maximum of v under the root, for the groups that ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..eager.native import fused_adam, fused_adamw
from ..lang import device_function, div_rn, sqrt_rn, tl
from .bias import bias_correction
from .rule import Rule


@device_function
def average(g, m, v, hyper):  # type: ignore[no-untyped-def]
    lr, weight_decay, keep1, log_beta1, beta2, keep2, log_beta2, eps, sign, use_max = hyper
    return m + keep1 * (g - m), beta2 * v + keep2 * g * g


@device_function
def descend(p, m, v, hyper, step):  # type: ignore[no-untyped-def]
    lr, weight_decay, keep1, log_beta1, beta2, keep2, log_beta2, eps, sign, use_max = hyper
    step_size = div_rn(lr, bias_correction(step, log_beta1))
    root = sqrt_rn(bias_correction(step, log_beta2))
    return p - step_size * div_rn(m, div_rn(sqrt_rn(v), root) + eps)


@device_function
def coupled(p, g, hyper):  # type: ignore[no-untyped-def]
    """Adam's decay: part of the gradient. Hyper 1 is weight_decay, 8 the sign of maximize."""
    return p, hyper[8] * g + hyper[1] * p


@device_function
def decoupled(p, g, hyper):  # type: ignore[no-untyped-def]
    """AdamW's decay: of the value alone. Hyper 0 is lr."""
    return p * (1.0 - hyper[0] * hyper[1]), hyper[8] * g


@device_function
def adam(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    p, g = coupled(p, g, hyper)
    m, v = average(g, state[0], state[1], hyper)
    return descend(p, m, v, hyper, step), (m, v)


@device_function
def adamw(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    p, g = decoupled(p, g, hyper)
    m, v = average(g, state[0], state[1], hyper)
    return descend(p, m, v, hyper, step), (m, v)


@device_function
def amsgrad_tail(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    """Hyper 9 is 1 for the groups that descend along the running maximum."""
    m, v = average(g, state[0], state[1], hyper)
    v_max = tl.maximum(state[2], v)
    return descend(p, m, tl.where(hyper[9] != 0.0, v_max, v), hyper, step), (m, v, v_max)


@device_function
def amsgrad(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    p, g = coupled(p, g, hyper)
    return amsgrad_tail(p, g, state, hyper, step)


@device_function
def amsgradw(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    p, g = decoupled(p, g, hyper)
    return amsgrad_tail(p, g, state, hyper, step)


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0.0 else -math.inf


def adam_hyper(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Row of Adam: lr 0, weight_decay 1, 1-beta1 2, log beta1 3, beta2 4, 1-beta2 5, log beta2 6, eps 7, sign 8,
    amsgrad 9."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    sign = -1.0 if group["maximize"] else 1.0
    moments = (1.0 - beta1, _log(beta1), beta2, 1.0 - beta2, _log(beta2))
    return (group["lr"], group["weight_decay"], *moments, group["eps"], sign, float(group["amsgrad"]))


_MOMENTS = ("exp_avg", "exp_avg_sq")
_MOMENTS_MAX = (*_MOMENTS, "max_exp_avg_sq")

ADAM = Rule("Adam", adam, _MOMENTS, adam_hyper, fused_adam, native_narrow=True)
ADAMW = Rule("AdamW", adamw, _MOMENTS, adam_hyper, fused_adamw, native_narrow=True)
AMSGRAD = Rule("Adam(amsgrad)", amsgrad, _MOMENTS_MAX, adam_hyper, fused_adam, native_narrow=True)
AMSGRADW = Rule("AdamW(amsgrad)", amsgradw, _MOMENTS_MAX, adam_hyper, fused_adamw, native_narrow=True)
