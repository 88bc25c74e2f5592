"""What every rule, norm and accumulation means, written plainly in float64 on one variable at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Update = tuple[Tensor, tuple[Tensor, ...]]
States = tuple[Tensor, ...]
Group = Mapping[str, Any]


def sgd(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.SGD, after Sutskever et al. 2013."""
    g = _signed(g, group) + group["weight_decay"] * p
    momentum = group["momentum"]
    if momentum == 0:
        return p - group["lr"] * g, states  # torch neither makes a buffer nor touches one
    buffer = g if step == 1 else momentum * states[0] + (1 - group["dampening"]) * g
    update = g + momentum * buffer if group["nesterov"] else buffer
    return p - group["lr"] * update, (buffer,)


def adam(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """Kingma and Ba 2015, algorithm 1."""
    return _adam(p, _signed(g, group) + group["weight_decay"] * p, states, group, step)


def adamw(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """Loshchilov and Hutter 2019, algorithm 2."""
    return _adam(p * (1 - group["lr"] * group["weight_decay"]), _signed(g, group), states, group, step)


def _adam(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    beta1, beta2 = group["betas"]
    m = beta1 * states[0] + (1 - beta1) * g
    v = beta2 * states[1] + (1 - beta2) * g * g
    kept = (m, v)
    root = v
    if len(states) == 3:
        largest = torch.maximum(states[2], v)
        kept = (m, v, largest)
        root = largest if group["amsgrad"] else v
    m_hat = m / (1 - beta1**step)
    v_hat = root / (1 - beta2**step)
    return p - group["lr"] * m_hat / (v_hat.sqrt() + group["eps"]), kept


def lion(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """Chen et al. 2023, algorithm 2."""
    beta1, beta2 = group["betas"]
    g = _signed(g, group)
    direction = torch.sign(beta1 * states[0] + (1 - beta1) * g)
    p = p - group["lr"] * (direction + group["weight_decay"] * p)
    return p, (beta2 * states[0] + (1 - beta2) * g,)


def rmsprop(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """torch.optim.RMSprop; the states are those of the rule, the group says which it uses."""
    alpha, momentum = group["alpha"], group["momentum"]
    g = _signed(g, group) + group["weight_decay"] * p
    squares = alpha * states[0] + (1 - alpha) * g * g
    kept = [squares, *states[1:]]
    root = squares
    if group["centered"]:
        kept[-1] = alpha * states[-1] + (1 - alpha) * g
        root = squares - kept[-1] ** 2
    update = g / (root.sqrt() + group["eps"])
    if momentum:
        kept[1] = update = momentum * states[1] + update
    return p - group["lr"] * update, tuple(kept)


def drift(p: Tensor, g: Tensor, states: States, group: Group, step: int) -> Update:
    """The user rule of `rules.py`: it moves zeros, so it would fill padding."""
    return p - 1.0 - group["lr"] * g * step, (states[0] + 2.0,)


def _signed(g: Tensor, group: Group) -> Tensor:
    return -g if group["maximize"] else g


def clip_coefficient(norm: float, max_norm: float) -> float:
    """torch.nn.utils.clip_grad_norm_'s."""
    coefficient = max_norm / (norm + 1e-6)
    return coefficient if math.isnan(coefficient) else min(1.0, coefficient)


def norm_of(parts: Sequence[Tensor | None], order: float = 2.0) -> float:
    """Norm of several tensors as one vector; None has no elements."""
    present = [part.detach().cpu().double().flatten() for part in parts if part is not None]
    vector = torch.cat(present) if present else torch.zeros(0, dtype=torch.float64)
    return float(torch.linalg.vector_norm(vector, order)) if vector.numel() else 0.0
