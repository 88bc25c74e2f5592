"""SGD with momentum, dampening and Nesterov's form, as torch.optim.SGD writes it.

g <- sign g + weight_decay p
b <- g at the first step, else momentum b + (1 - dampening) g
p <- p - lr (g + momentum b  if nesterov else  b)         (Sutskever et al. 2013)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..eager.native import fused_sgd
from ..lang import device_function, tl
from .rule import Rule


@device_function
def sgd(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    lr, weight_decay, sign, momentum, keep, nesterov = hyper
    return p - lr * (sign * g + weight_decay * p), state


@device_function
def sgd_momentum(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    lr, weight_decay, sign, momentum, keep, nesterov = hyper
    g = sign * g + weight_decay * p
    buffer = tl.where(step == 1.0, g, momentum * state[0] + keep * g)
    update = tl.where(nesterov != 0.0, g + momentum * buffer, buffer)
    # A group without momentum keeps no buffer in torch: its dampening must not touch the update, nor the update a
    # buffer that may be asked for later.
    update = tl.where(momentum != 0.0, update, g)
    return p - lr * update, (tl.where(momentum != 0.0, buffer, state[0]),)


def sgd_hyper(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """Row of SGD: lr, weight_decay, sign, momentum, 1-dampening, nesterov."""
    sign = -1.0 if group["maximize"] else 1.0
    keep = 1.0 - group["dampening"]
    return (group["lr"], group["weight_decay"], sign, group["momentum"], keep, float(group["nesterov"]))


SGD = Rule("SGD", sgd, (), sgd_hyper, fused_sgd, keeps_step=False)
SGD_MOMENTUM = Rule("SGD(momentum)", sgd_momentum, ("momentum_buffer",), sgd_hyper, fused_sgd, keeps_step=False)
