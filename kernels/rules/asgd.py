"""Averaged SGD (Polyak and Juditsky 1992), as torch.optim.ASGD writes it.

p <- p (1 - lambd eta) - eta g          eta and mu: scalars of the variable that begin as lr and 1
ax <- p if mu = 1 else ax + mu (p - ax)
eta <- lr / (1 + lambd lr t)^alpha      mu <- 1 / max(1, t - t0)

A step uses the eta of the step before, so it follows a schedule of lr one step behind, as torch's. Its weight decay is
coupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, exp, log, maximum, where
from .decay import coupled
from .rule import Rule
from .stages import scalars


class ASGDNumbers(NamedTuple):
    lr: Any
    lambd: Any
    alpha: Any
    t0: Any


@scalars("rate", "weight", "eta", "mu")
def asgd_scalars(hyper, step):
    eta = hyper.lr * exp(log(1.0 + hyper.lambd * hyper.lr * step) * (0.0 - hyper.alpha))
    mu = 1.0 / maximum(step - hyper.t0, step / step)
    return hyper.eta, hyper.mu, eta, mu


@device_function
def asgd(p, g, state, hyper, step):
    p = p * (1.0 - hyper.lambd * hyper.rate) - hyper.rate * g
    averaged = state[0] + hyper.weight * (p - state[0])
    return p, (where(hyper.weight == 1.0, p, averaged),)


def asgd_numbers(group: Mapping[str, Any]) -> ASGDNumbers:
    return ASGDNumbers(*[group[name] for name in ASGDNumbers._fields])


ASGD = coupled(
    Rule(
        "ASGD",
        asgd,
        ("ax",),
        ASGDNumbers,
        asgd_numbers,
        init={"eta": "lr", "mu": 1.0},
        own=("eta", "mu"),
        stochastic=("ax",),
        exact=("ax",),
        scalars=asgd_scalars,
    )
)
