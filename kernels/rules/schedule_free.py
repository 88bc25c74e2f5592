"""Schedule-Free AdamW and SGD (Defazio et al. 2024, arXiv 2405.15682), as the authors' code writes them.

Values are y while training; z begins as the value. With t the variable's step:

    L = lr min(1, t / warmup_steps)     M <- max(M, L)      w = t^r M^weight_lr_power       W <- W + w      c = w / W
    AdamW:  v <- beta2 v + (1 - beta2) g^2                  u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay y
    SGD:    u = g + weight_decay y                          beta1: the momentum
    y <- y + c (z - y) + L (beta1 (1 - c) - 1) u            z <- z - L u

To evaluate, y becomes x = y + (1 - 1 / beta1) (z - y), and to go on, x becomes y = x + (1 - beta1) (z - x): `TO_X` and
`TO_Y`. The authors count t, M and W by param group; here they are the variable's, as all counts are, which differs
where a variable had no gradient in a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, exp, log, maximum, minimum, power, sqrt_rn, where
from .bias import bias_correction, log_of
from .decay import ascending
from .rule import VALUE, Rule
from .stages import scalars


class ScheduleFreeNumbers(NamedTuple):
    lr: Any
    weight_decay: Any
    beta1: Any
    beta2: Any
    keep2: Any  # 1 - beta2
    log_beta2: Any
    eps: Any
    warmup: Any  # steps; 1 for none
    r: Any
    weight_lr_power: Any


@scalars("rate", "push", "share", "scale", "weight_sum", "lr_max")
def schedule_free_scalars(hyper, step):
    rate = hyper.lr * minimum(step / hyper.warmup, step / step)
    largest = maximum(hyper.lr_max, rate)
    weight = exp(hyper.r * log(step)) * power(largest, hyper.weight_lr_power)
    total = hyper.weight_sum + weight
    share = where(total > 0.0, weight / where(total > 0.0, total, step), 0.0)
    push = rate * (hyper.beta1 * (1.0 - share) - 1.0)
    scale = 1.0 / sqrt_rn(bias_correction(step, hyper.log_beta2))
    return rate, push, share, scale, total, largest


@device_function
def moved(p, z, u, hyper):
    """New y and z."""
    return p + hyper.share * (z - p) + hyper.push * u, z - hyper.rate * u


@device_function
def schedule_free_adamw(p, g, state, hyper, step):
    v = hyper.beta2 * state[1] + hyper.keep2 * g * g
    u = div_rn(g, sqrt_rn(v) * hyper.scale + hyper.eps) + hyper.weight_decay * p
    y, z = moved(p, state[0], u, hyper)
    return y, (z, v)


@device_function
def schedule_free_sgd(p, g, state, hyper, step):
    y, z = moved(p, state[0], g + hyper.weight_decay * p, hyper)
    return y, (z,)


def schedule_free_numbers(group: Mapping[str, Any]) -> ScheduleFreeNumbers:
    beta1, beta2 = (float(beta) for beta in group.get("betas") or (group["momentum"], 0.0))
    return ScheduleFreeNumbers(
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        beta1=beta1,
        beta2=beta2,
        keep2=1.0 - beta2,
        log_beta2=log_of(beta2),
        eps=group.get("eps", 0.0),
        warmup=group["warmup_steps"] or 1.0,
        r=group["r"],
        weight_lr_power=group["weight_lr_power"],
    )


class Weight(NamedTuple):
    weight: Any


@device_function
def exchange(p, g, state, hyper, step):
    return p + hyper.weight * (state[0] - p), state


def to_x(group: Mapping[str, Any]) -> Weight:
    return Weight(1.0 - 1.0 / schedule_free_numbers(group).beta1)


def to_y(group: Mapping[str, Any]) -> Weight:
    return Weight(1.0 - schedule_free_numbers(group).beta1)


def _rule(name: str, function: Any, states: tuple[str, ...]) -> Rule:
    return ascending(
        Rule(
            name,
            function,
            states,
            ScheduleFreeNumbers,
            schedule_free_numbers,
            init={"z": VALUE},
            own=("weight_sum", "lr_max"),
            scalars=schedule_free_scalars,
            stochastic=tuple(name for name in states if name == "exp_avg_sq"),
            nonnegative=tuple(name for name in states if name == "exp_avg_sq"),
            exact=("z",),
        )
    )


SCHEDULE_FREE_ADAMW = _rule("ScheduleFreeAdamW", schedule_free_adamw, ("z", "exp_avg_sq"))
SCHEDULE_FREE_SGD = _rule("ScheduleFreeSGD", schedule_free_sgd, ("z",))
TO_X = Rule("to x", exchange, ("z",), Weight, to_x, init={"z": VALUE})
TO_Y = Rule("to y", exchange, ("z",), Weight, to_y, init={"z": VALUE})
