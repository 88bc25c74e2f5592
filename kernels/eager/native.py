"""torch's own operators behind one signature: fused where there are such.

Each takes parallel lists of flat runs and updates them in place. They read `grad / grad_scale` and write that quotient
back to `grads`, so a caller that must not rewrite gradients passes copies or no `grad_scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop as torch_rmsprop

Runs = list[Tensor]

# Elements that operators work on one after the other: their temporaries stay in a core's cache.
CHUNK = 131_072


def fused_adam(
    values: Runs, grads: Runs, states: Sequence[Runs], steps: Runs, group: Mapping[str, Any], scale: Tensor | None
) -> None:
    _adam(torch._fused_adam_, values, grads, states, steps, group, scale)


def fused_adamw(
    values: Runs, grads: Runs, states: Sequence[Runs], steps: Runs, group: Mapping[str, Any], scale: Tensor | None
) -> None:
    _adam(torch._fused_adamw_, values, grads, states, steps, group, scale)


def _adam(
    operator: Any,
    values: Runs,
    grads: Runs,
    states: Sequence[Runs],
    steps: Runs,
    group: Mapping[str, Any],
    scale: Tensor | None,
) -> None:
    amsgrad = bool(group["amsgrad"])
    beta1, beta2 = group["betas"]
    operator(
        values,
        grads,
        states[0],
        states[1],
        states[2] if amsgrad else [],
        steps,
        lr=float(group["lr"]),
        beta1=float(beta1),
        beta2=float(beta2),
        weight_decay=float(group["weight_decay"]),
        eps=float(group["eps"]),
        amsgrad=amsgrad,
        maximize=bool(group["maximize"]),
        grad_scale=scale,
    )


def fused_sgd(
    values: Runs, grads: Runs, states: Sequence[Runs], steps: Runs, group: Mapping[str, Any], scale: Tensor | None
) -> None:
    momentum = float(group["momentum"])
    buffers = states[0] if states and momentum else []
    first = [float(step) == 1.0 for step in steps] if buffers else [False] * len(values)
    for is_first in sorted(set(first)):
        chosen = [i for i, flag in enumerate(first) if flag is is_first]
        torch._fused_sgd_(
            [values[i] for i in chosen],
            [grads[i] for i in chosen],
            [buffers[i] for i in chosen] if buffers else [],
            weight_decay=float(group["weight_decay"]),
            momentum=momentum,
            lr=float(group["lr"]),
            dampening=float(group["dampening"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            is_first_step=is_first,
            grad_scale=scale,
        )


def native_rmsprop(names: Sequence[str]) -> Callable[..., None]:
    """torch's RMSprop, which has no fused operator, with the states of these names; chunk by chunk."""

    def run(
        values: Runs, grads: Runs, states: Sequence[Runs], steps: Runs, group: Mapping[str, Any], scale: Tensor | None
    ) -> None:
        if scale is not None:
            torch._foreach_div_(grads, scale)
        params, gradients, *stored = [
            [piece for stream in runs for piece in torch.split(stream, CHUNK)] for runs in (values, grads, *states)
        ]
        state = dict(zip(names, stored, strict=True))
        torch_rmsprop(
            params,
            gradients,
            state["square_avg"],
            state.get("grad_avg", []),
            state.get("momentum_buffer", []),
            [torch.zeros(())] * len(params),
            foreach=False,
            maximize=bool(group["maximize"]),
            lr=float(group["lr"]),
            alpha=float(group["alpha"]),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            momentum=float(group["momentum"]),
            centered=bool(group["centered"]),
        )

    return run
