"""Muon around its matrix products (Jordan et al. 2024): what comes before them, and what comes after.

MUON_DIRECTION, over the momentum in the place of the value:

    M <- lerp(M, g, 1 - momentum)           u <- lerp(g, M, momentum)  if nesterov else  M      (torch, Keller Jordan)
    M <- momentum M + g                     u <- g + momentum M        if nesterov else  M      (`sum_momentum`)

MUON_APPLY, over the value, with O, what the products make of u, in the place of the gradient:

    p <- p (1 - lr weight_decay)            in groups with `cautious_decay` only where O p >= 0
    p <- p - lr scale O                     scale: of the shape of the matrix

The two buffers differ by the factor 1 / (1 - momentum), and O does not: it is free of scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..lang import device_function, where
from .rule import Rule


class DirectionNumbers(NamedTuple):
    momentum: Any
    keep: Any  # 1 - momentum
    nesterov: Any
    summed: Any


class ApplyNumbers(NamedTuple):
    lr: Any
    weight_decay: Any
    scale: Any
    cautious: Any


@device_function
def muon_direction(p, g, state, hyper, step):
    total = hyper.momentum * p + g
    # torch's lerp: the nearer end is the one that is moved from.
    average = where(hyper.keep < 0.5, p + hyper.keep * (g - p), g - (g - p) * hyper.momentum)
    buffer = where(hyper.summed != 0.0, total, average)
    ahead = where(hyper.momentum < 0.5, g + hyper.momentum * (buffer - g), buffer - (buffer - g) * hyper.keep)
    ahead = where(hyper.summed != 0.0, g + hyper.momentum * buffer, ahead)
    return buffer, (where(hyper.nesterov != 0.0, ahead, buffer),)


@device_function
def muon_apply(p, g, state, hyper, step):
    decayed = p * (1.0 - hyper.lr * hyper.weight_decay)
    kept = where(g * p >= 0.0, decayed, where(hyper.cautious == 0.0, decayed, p))
    return kept - hyper.lr * hyper.scale * g, state


def direction_numbers(group: Mapping[str, Any]) -> DirectionNumbers:
    momentum = float(group["momentum"])
    return DirectionNumbers(momentum, 1.0 - momentum, float(group["nesterov"]), float(group.get("sum_momentum", False)))


def apply_numbers(group: Mapping[str, Any]) -> ApplyNumbers:
    return ApplyNumbers(group["lr"], group["weight_decay"], group["scale"], float(group.get("cautious_decay", False)))


MUON_DIRECTION = Rule(
    "Muon(direction)",
    muon_direction,
    ("direction",),
    DirectionNumbers,
    direction_numbers,
    keeps_step=False,
    is_momentum=True,
)
MUON_APPLY = Rule("Muon(apply)", muon_apply, (), ApplyNumbers, apply_numbers, keeps_step=False)
MUON = replace(MUON_DIRECTION, name="Muon", states=("momentum_buffer",), exact=("momentum_buffer",), is_momentum=False)
"""What a variable keeps; its step is the two above."""
