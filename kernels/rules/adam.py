"""Adam, AdamW and their AMSGrad variants.

Formula (Kingma and Ba 2015, arXiv 1412.6980; decoupled decay: Loshchilov and Hutter 2019, arXiv 1711.05101; AMSGrad:
Reddi, Kale and Kumar 2018, arXiv 1904.09237), as torch.optim writes it:

    m <- m + (1 - beta1) (g - m)            v <- beta2 v + (1 - beta2) g^2
    p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

Adam's decay is coupled, AdamW's decoupled (`decay.py`). AMSGrad puts the running maximum of v under the root, for the
groups that ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, maximum, sqrt_rn, where
from .bias import bias_correction, log_of
from .decay import coupled, decoupled
from .rule import Rule


class AdamNumbers(NamedTuple):
    lr: Any
    keep1: Any  # 1 - beta1
    log_beta1: Any
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any
    amsgrad: Any  # 1 for the groups that descend along the running maximum


@device_function
def average(g, m, v, hyper):
    return m + hyper.keep1 * (g - m), hyper.beta2 * v + hyper.keep2 * g * g


@device_function
def descend(p, m, v, hyper, step):
    step_size = div_rn(hyper.lr, bias_correction(step, hyper.log_beta1))
    # Divided once, not for every element: an IEEE division is a ninth of the instructions on a GPU.
    scale = div_rn(1.0, sqrt_rn(bias_correction(step, hyper.log_beta2)))
    return p - step_size * div_rn(m, sqrt_rn(v) * scale + hyper.eps)


@device_function
def adam(p, g, state, hyper, step):
    m, v = average(g, state[0], state[1], hyper)
    return descend(p, m, v, hyper, step), (m, v)


@device_function
def decaying_adam(p, g, state, hyper, step):
    # In an order that takes 64 registers on a GPU.
    g = hyper.ascent * g
    v = hyper.beta2 * state[1] + hyper.keep2 * g * g
    m = state[0] + hyper.keep1 * (g - state[0])
    scale = div_rn(1.0, sqrt_rn(bias_correction(step, hyper.log_beta2)))
    step_size = div_rn(hyper.lr, bias_correction(step, hyper.log_beta1))
    root = sqrt_rn(v) * scale + hyper.eps
    left = p * (1.0 - hyper.lr * hyper.weight_decay)
    return left - step_size * div_rn(m, root), (m, v)


@device_function
def amsgrad(p, g, state, hyper, step):
    m, v = average(g, state[0], state[1], hyper)
    v_max = maximum(state[2], v)
    return descend(p, m, where(hyper.amsgrad != 0.0, v_max, v), hyper, step), (m, v, v_max)


def adam_numbers(group: Mapping[str, Any]) -> AdamNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return AdamNumbers(
        lr=group["lr"],
        keep1=1.0 - beta1,
        log_beta1=log_of(beta1),
        beta2=beta2,
        keep2=1.0 - beta2,
        log_beta2=log_of(beta2),
        eps=group["eps"],
        amsgrad=float(group.get("amsgrad", False)),
    )


MOMENTS = ("exp_avg", "exp_avg_sq")
_MOMENTS_MAX = (*MOMENTS, "max_exp_avg_sq")


def _rule(name: str, function: Any, states: tuple[str, ...], decaying: Any = None) -> Rule:
    squares = states[1:]
    return Rule(
        name,
        function,
        states,
        AdamNumbers,
        adam_numbers,
        stochastic=squares[:1],
        nonnegative=squares,
        decaying=decaying,
    )


ADAM = coupled(_rule("Adam", adam, MOMENTS))
ADAMW = decoupled(_rule("AdamW", adam, MOMENTS, decaying_adam))
AMSGRAD = coupled(_rule("Adam(amsgrad)", amsgrad, _MOMENTS_MAX))
AMSGRADW = decoupled(_rule("AdamW(amsgrad)", amsgrad, _MOMENTS_MAX))
