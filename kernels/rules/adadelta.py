"""Adadelta (Zeiler 2012, arXiv 1212.5701), as torch.optim.Adadelta writes it.

v <- rho v + (1 - rho) g^2
d <- sqrt(u + eps) / sqrt(v + eps) * g
u <- rho u + (1 - rho) d^2
p <- p - lr d

Its decay is coupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, sqrt_rn
from .decay import coupled
from .rule import Rule


class AdadeltaNumbers(NamedTuple):
    lr: Any
    rho: Any
    keep: Any  # 1 - rho
    eps: Any


@device_function
def adadelta(p, g, state, hyper, step):
    v = hyper.rho * state[0] + hyper.keep * g * g
    d = div_rn(sqrt_rn(state[1] + hyper.eps), sqrt_rn(v + hyper.eps)) * g
    u = hyper.rho * state[1] + hyper.keep * d * d
    return p - hyper.lr * d, (v, u)


def adadelta_numbers(group: Mapping[str, Any]) -> AdadeltaNumbers:
    rho = float(group["rho"])
    return AdadeltaNumbers(group["lr"], rho, 1.0 - rho, group["eps"])


ADADELTA = coupled(
    Rule(
        "Adadelta",
        adadelta,
        ("square_avg", "acc_delta"),
        AdadeltaNumbers,
        adadelta_numbers,
        stochastic=("square_avg", "acc_delta"),
        nonnegative=("square_avg", "acc_delta"),
    )
)
