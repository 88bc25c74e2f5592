"""Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101), as the authors' code writes it.

d is an estimate of the distance from the first values p0 to the solution, of all variables together; t the variable's
step; r = lr d, times sqrt(1 - beta2^t) / (1 - beta1^t) with `use_bias_correction`.

    m <- beta1 m + d (1 - beta1) g          v <- beta2 v + d^2 (1 - beta2) g^2
    s <- beta3 s + (d / d0) r g             with d in the place of r with `safeguard_warmup`
    numerator <- beta3 numerator + sum (d / d0) r g (p0 - p)                    denominator = sum |s|
    d' = d_coef numerator / denominator, no smaller than d_max so far, no larger than growth_rate d
    p <- p - r m / (sqrt(v) + d' eps)       weight decay before, decoupled by r, or in the gradient

The moments move where the sums are taken; what is made of the sums of all variables is the optimizer's
(`optim/prodigy.py`), which puts d' into the numbers of the step. A denominator of 0 moves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import absolute, device_function, div_rn, sqrt_rn
from .bias import bias_correction, log_of
from .decay import ascending
from .rule import VALUE, Rule
from .stages import scalars, statistics


class ProdigyNumbers(NamedTuple):
    lr: Any
    coupled: Any  # weight decay, or 0
    decoupled: Any  # the same
    beta1: Any
    log_beta1: Any  # -inf for no correction
    beta2: Any
    log_beta2: Any
    beta3: Any
    eps: Any
    d: Any
    d0: Any
    next_d: Any
    moves: Any  # 0 where the denominator is
    safeguard: Any  # 1 for d in the place of the rate


@scalars("rate", "keep1", "keep2", "push", "pull")
def rates(hyper, step):
    corrected = sqrt_rn(bias_correction(step, hyper.log_beta2)) / bias_correction(step, hyper.log_beta1)
    rate, scale = hyper.d * hyper.lr * corrected, hyper.d / hyper.d0
    push = scale * (hyper.safeguard * hyper.d + (1.0 - hyper.safeguard) * rate)
    return rate, hyper.d * (1.0 - hyper.beta1), hyper.d * hyper.d * (1.0 - hyper.beta2), push, scale * rate


@statistics("numerator", "denominator", moves=True)
def gathered(p, g, state, hyper, step):
    g = g + hyper.coupled * p
    m = hyper.beta1 * state[0] + hyper.keep1 * g
    v = hyper.beta2 * state[1] + hyper.keep2 * g * g
    s = hyper.beta3 * state[2] + hyper.push * g
    return (hyper.pull * g * (state[3] - p), absolute(s)), (m, v, s, state[3])


@device_function
def prodigy(p, g, state, hyper, step):
    rate = hyper.rate * hyper.moves
    p = p * (1.0 - rate * hyper.decoupled)
    return p - rate * div_rn(state[0], sqrt_rn(state[1]) + hyper.next_d * hyper.eps), state


def prodigy_numbers(group: Mapping[str, Any]) -> ProdigyNumbers:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    corrected, decay = group["use_bias_correction"], group["weight_decay"]
    return ProdigyNumbers(
        lr=group["lr"],
        coupled=0.0 if group["decouple"] else decay,
        decoupled=decay if group["decouple"] else 0.0,
        beta1=beta1,
        log_beta1=log_of(beta1 if corrected else 0.0),
        beta2=beta2,
        log_beta2=log_of(beta2 if corrected else 0.0),
        beta3=beta2**0.5 if group["beta3"] is None else group["beta3"],
        eps=group["eps"],
        d=group["d"],
        d0=group["d0"],
        next_d=group.get("next_d", group["d"]),
        moves=group.get("moves", 1.0),
        safeguard=float(group["safeguard_warmup"]),
    )


PRODIGY = ascending(
    Rule(
        "Prodigy",
        prodigy,
        ("exp_avg", "exp_avg_sq", "s", "p0"),
        ProdigyNumbers,
        prodigy_numbers,
        init={"p0": VALUE},
        scalars=rates,
        statistics=gathered,
        stochastic=("exp_avg_sq", "s"),
        exact=("s", "p0"),
    )
)
