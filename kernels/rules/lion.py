"""Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2).

u <- sign(beta1 m + (1 - beta1) g)      m <- beta2 m + (1 - beta2) g
p <- p (1 - lr weight_decay) - lr u
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..lang import device_function, sign, tl  # noqa: F401  Triton's interpreter wants tl in sight
from .rule import Rule


@device_function
def lion(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    lr, weight_decay, beta1, keep1, beta2, keep2, ascent = hyper
    g = ascent * g
    m = state[0]
    blend = beta1 * m + keep1 * g
    return p * (1.0 - lr * weight_decay) - lr * sign(blend), (beta2 * m + keep2 * g,)


def lion_hyper(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Row of Lion: lr, weight_decay, beta1, 1-beta1, beta2, 1-beta2, -1 to maximize."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    ascent = -1.0 if group["maximize"] else 1.0
    return (group["lr"], group["weight_decay"], beta1, 1.0 - beta1, beta2, 1.0 - beta2, ascent)


LION = Rule("Lion", lion, ("exp_avg",), lion_hyper)
