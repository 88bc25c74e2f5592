"""Norms of gradients, and clipping of the flat stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import GradientError
from ..memory.grad_mode import unwatched
from ..memory.streams import FROZEN_ELEMENTS
from ..variables.variable import Variable
from .cycle import Gradients
from .masks import clear_masked
from .plans import checked


@unwatched
def norm(gradients: Gradients, order: float = 2.0) -> Tensor:
    """See `VarStore.grad_norm`."""
    plans = checked(gradients.plans)
    if not order > 0.0:
        # Not a norm over one vector (-inf is the smallest of the variables' norms): torch's own, tensor by tensor.
        grads = [unmasked(gradients, variable) for variable in plans.variables]
        return torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None], order)
    known = gradients.known_norm(plans) if order == 2.0 else None
    if known is not None:
        return known.clone()
    collected = gradients.collect(plans)
    if order != 2.0:
        each = plans.variable_norms(collected.sources, order, values=False)[1]
        return torch.linalg.vector_norm(each, order) if len(each) else plans.norm.clone()
    return gradients.norm_for(plans, collected).clone()


def unmasked(gradients: Gradients, variable: Variable) -> Tensor | None:
    """One variable's gradient with zeros where it is masked."""
    grad, frozen = gradients.of(variable), gradients.registry.streams.find(FROZEN_ELEMENTS, variable.dtype)
    if grad is None or frozen is None:
        return grad
    return grad.masked_fill(frozen.view(variable.span).view(torch.bool), 0.0)


@unwatched
def norms(gradients: Gradients, order: float = 2.0) -> dict[str, tuple[Tensor, Tensor | None]]:
    """See `VarStore.norms`."""
    plans = checked(gradients.plans)
    collected = gradients.collect(plans)
    values, grads = plans.variable_norms(collected.sources, order, values=True)
    rows = zip(plans.variables, values.unbind(), grads.unbind(), gradients.hits(plans, collected), strict=True)
    return {v.name: (value, grad if hit else None) for v, value, grad, hit in rows if v.requires_grad}


@unwatched
def clip_norm_(
    gradients: Gradients,
    max_norm: float,
    order: float = 2.0,
    error_if_nonfinite: bool = False,
    per_tensor: bool = False,
) -> Tensor:
    """See `VarStore.clip_grad_norm_`."""
    if per_tensor and not order > 0.0:
        raise ValueError(f"per_tensor=True clips by norms of a positive order, not of {order}")
    gradients.flush()
    total = norm(gradients, order)
    if error_if_nonfinite and not math.isfinite(float(total)):
        raise GradientError(
            f"the gradient norm of order {order} is {float(total)}, so gradients cannot be clipped; "
            "look at store.norms() for the variable, or pass error_if_nonfinite=False"
        )
    if per_tensor:
        clip_each_(gradients, max_norm, order)
        return total
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    gradients.rewrite(lambda streams: [stream.mul_(coefficient.to(stream.dtype)) for stream in streams])
    clear_masked(gradients.registry)
    return total


def clip_each_(gradients: Gradients, max_norm: float, order: float) -> None:
    """Clips the norm of each variable's gradient by itself."""
    plans = gradients.plans()
    each = plans.variable_norms(gradients.collect(plans).sources, order, values=False)[1]
    coefficients = torch.clamp(max_norm / (each + 1e-6), max=1.0).unbind()
    pairs = zip(gradients.gathered(plans.variables), coefficients, strict=True)
    present = [(grad, coefficient) for grad, coefficient in pairs if grad is not None]
    if present:
        grads, factors = zip(*present, strict=True)
        gradients.rewrite(lambda _: torch._foreach_mul_(grads, factors))


@unwatched
def clip_value_(gradients: Gradients, clip_value: float) -> None:
    """See `VarStore.clip_grad_value_`."""
    gradients.flush()
    gradients.rewrite(lambda streams: [stream.clamp_(-clip_value, clip_value) for stream in streams])
