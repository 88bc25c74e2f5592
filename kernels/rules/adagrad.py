"""Adagrad (Duchi, Hazan and Singer 2011), as torch.optim.Adagrad writes it.

s <- s + g^2                            s begins as initial_accumulator_value
p <- p - lr / (1 + (t - 1) lr_decay) * g / (sqrt(s) + eps)

Its decay is coupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, div_rn, sqrt_rn
from .decay import coupled
from .rule import Rule
from .stages import scalars


class AdagradNumbers(NamedTuple):
    lr: Any
    lr_decay: Any
    eps: Any
    initial_accumulator_value: Any


@scalars("rate")
def adagrad_scalars(hyper, step):
    return (hyper.lr / (1.0 + (step - 1.0) * hyper.lr_decay),)


@device_function
def adagrad(p, g, state, hyper, step):
    s = state[0] + g * g
    return p - hyper.rate * div_rn(g, sqrt_rn(s) + hyper.eps), (s,)


def adagrad_numbers(group: Mapping[str, Any]) -> AdagradNumbers:
    return AdagradNumbers(*[group[name] for name in AdagradNumbers._fields])


ADAGRAD = coupled(
    Rule(
        "Adagrad",
        adagrad,
        ("sum",),
        AdagradNumbers,
        adagrad_numbers,
        init={"sum": "initial_accumulator_value"},
        scalars=adagrad_scalars,
        early=True,
        stochastic=("sum",),
        nonnegative=("sum",),
        exact=("sum",),
    )
)
