"""SGD with momentum, dampening and Nesterov's form, as torch.optim.SGD writes it.

b <- g at the first step, else momentum b + (1 - dampening) g
p <- p - lr (g + momentum b  if nesterov else  b)         (Sutskever et al. 2013)

Its decay is coupled (`decay.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..lang import device_function, where
from .decay import coupled
from .rule import Rule


class SGDNumbers(NamedTuple):
    lr: Any
    momentum: Any
    keep: Any  # 1 - dampening
    nesterov: Any


@device_function
def sgd(p, g, state, hyper, step):
    return p - hyper.lr * g, state


@device_function
def sgd_momentum(p, g, state, hyper, step):
    buffer = where(step == 1.0, g, hyper.momentum * state[0] + hyper.keep * g)
    update = where(hyper.nesterov != 0.0, g + hyper.momentum * buffer, buffer)
    # A group without momentum keeps no buffer in torch: its dampening must not touch the update, nor the update a
    # buffer that may be asked for later.
    update = where(hyper.momentum != 0.0, update, g)
    return p - hyper.lr * update, (where(hyper.momentum != 0.0, buffer, state[0]),)


def sgd_numbers(group: Mapping[str, Any]) -> SGDNumbers:
    return SGDNumbers(
        lr=group["lr"],
        momentum=group["momentum"],
        keep=1.0 - group["dampening"],
        nesterov=float(group["nesterov"]),
    )


SGD = coupled(Rule("SGD", sgd, (), SGDNumbers, sgd_numbers, keeps_step=False))
SGD_MOMENTUM = coupled(
    Rule("SGD(momentum)", sgd_momentum, ("momentum_buffer",), SGDNumbers, sgd_numbers, keeps_step=False)
)
