"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) around what it divides by, as torch.optim writes it.

ADAFACTOR_GRADIENT, over a stream in the place of the values, leaves the gradient there, clipped and without its scale.

ADAFACTOR, over the value, with u, the gradient divided by the root of its estimated square, in the gradient's place:

    rate = max(eps2, rms(p)) min(lr, 1 / sqrt(t)) / max(1, rms(u) / d)      rms: over the variable, before its decay
    p <- p (1 - lr weight_decay), then p <- p - rate u

As in torch, a norm that is NaN counts as no reason to step less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, sqrt_rn, where
from .decay import decoupled
from .rule import Rule
from .stages import scalars, statistics


class AdafactorNumbers(NamedTuple):
    lr: Any
    eps2: Any
    d: Any


@scalars("rate")
def rated(hyper, step):
    value, update = sqrt_rn(hyper.of_value / hyper.count), sqrt_rn(hyper.of_update / hyper.count) / hyper.d
    pace = 1.0 / sqrt_rn(step)
    pace = where(hyper.lr < pace, hyper.lr, pace)
    return (where(value > hyper.eps2, value, hyper.eps2) * pace / where(update > 1.0, update, step / step),)


@statistics("of_value", "of_update", "count", scalars=rated)
def measured(p, g, state, hyper, step):
    return p * p, g * g, g * 0.0 + 1.0


@device_function
def adafactor(p, g, state, hyper, step):
    return p - hyper.rate * g, state


@device_function
def gradient(p, g, state, hyper, step):
    return g, state


def adafactor_numbers(group: Mapping[str, Any]) -> AdafactorNumbers:
    return AdafactorNumbers(group["lr"], float(group["eps"][1]), float(group["d"]))


class NoNumbers(NamedTuple):
    pass


def no_numbers(group: Mapping[str, Any]) -> NoNumbers:
    return NoNumbers()


ADAFACTOR = decoupled(Rule("Adafactor", adafactor, (), AdafactorNumbers, adafactor_numbers, statistics=measured))
ADAFACTOR_GRADIENT = Rule("Adafactor(gradient)", gradient, (), NoNumbers, no_numbers, keeps_step=False)
