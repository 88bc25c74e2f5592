"""SGD with momentum, dampening and Nesterov's form, as torch.optim.SGD writes it.

g <- sign g + weight_decay p
b <- g at the first step, else momentum b + (1 - dampening) g
p <- p - lr (g + momentum b  if nesterov else  b)         (Sutskever et al. 2013)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, where
from .rule import Rule


class SGDNumbers(NamedTuple):
    lr: Any
    weight_decay: Any
    ascent: Any  # -1 to maximize
    momentum: Any
    keep: Any  # 1 - dampening
    nesterov: Any


@device_function
def sgd(p, g, state, hyper, step):
    return p - hyper.lr * (hyper.ascent * g + hyper.weight_decay * p), state


@device_function
def sgd_momentum(p, g, state, hyper, step):
    g = hyper.ascent * g + hyper.weight_decay * p
    buffer = where(step == 1.0, g, hyper.momentum * state[0] + hyper.keep * g)
    update = where(hyper.nesterov != 0.0, g + hyper.momentum * buffer, buffer)
    # A group without momentum keeps no buffer in torch: its dampening must not touch the update, nor the update a
    # buffer that may be asked for later.
    update = where(hyper.momentum != 0.0, update, g)
    return p - hyper.lr * update, (where(hyper.momentum != 0.0, buffer, state[0]),)


def sgd_numbers(group: Mapping[str, Any]) -> SGDNumbers:
    return SGDNumbers(
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        ascent=-1.0 if group["maximize"] else 1.0,
        momentum=group["momentum"],
        keep=1.0 - group["dampening"],
        nesterov=float(group["nesterov"]),
    )


SGD = Rule("SGD", sgd, (), SGDNumbers, sgd_numbers, keeps_step=False)
SGD_MOMENTUM = Rule("SGD(momentum)", sgd_momentum, ("momentum_buffer",), SGDNumbers, sgd_numbers, keeps_step=False)
