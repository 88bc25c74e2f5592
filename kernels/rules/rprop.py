"""Rprop (Riedmiller and Braun 1993), as torch.optim.Rprop writes it.

q = sign(g prev)                        of the product: one that underflows is no change, as in torch
s <- clip(s * eta_plus, eta_minus or 1 where q is 1, -1 or 0, smallest, largest)        s begins as lr
g <- 0 where q is -1
p <- p - sign(g) s                      prev <- g

The sign of NaN is 0 here, as it is torch's: p stays. No decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, where
from .decay import ascending
from .rule import Rule


class RpropNumbers(NamedTuple):
    lr: Any
    eta_minus: Any
    eta_plus: Any
    smallest: Any
    largest: Any


@device_function
def rprop(p, g, state, hyper, step):
    product = g * state[0]
    factor = where(product > 0.0, hyper.eta_plus, where(product < 0.0, hyper.eta_minus, 1.0))
    s = state[1] * factor
    s = where(s < hyper.smallest, hyper.smallest, s)
    s = where(s > hyper.largest, hyper.largest, s)
    g = where(product < 0.0, 0.0, g)
    moved = where(g > 0.0, p - s, where(g < 0.0, p + s, p))
    return moved, (g, s)


def rprop_numbers(group: Mapping[str, Any]) -> RpropNumbers:
    eta_minus, eta_plus = group["etas"]
    smallest, largest = group["step_sizes"]
    return RpropNumbers(group["lr"], eta_minus, eta_plus, smallest, largest)


RPROP = ascending(
    Rule(
        "Rprop",
        rprop,
        ("prev", "step_size"),
        RpropNumbers,
        rprop_numbers,
        init={"step_size": "lr"},
        exact=("step_size",),
    )
)
