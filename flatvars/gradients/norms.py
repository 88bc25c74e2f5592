"""Norms of gradients, and clipping of the flat stream."""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import torch
from torch import Tensor

from ..errors import GradientError
from ..memory.grad_mode import unwatched
from ..memory.streams import FROZEN_ELEMENTS
from ..variables.variable import Variable
from .cycle import Gradients
from .masks import clear_masked
from .plans import checked

_requires_grad = attrgetter("requires_grad")


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


Pair = tuple[Tensor, Tensor | None]
"""Norms of one variable: of its value, and of its gradient if it has one."""


@dataclass(frozen=True, eq=False)
class VariableNorms(Mapping[str, Pair]):
    """Norms of variables: name to (of the value, of the gradient or None), tensors [].

    All of them lie in two tensors; those of one variable are made when they are read. Nothing waits for the device
    until a number is.

    Attributes:
        names: Of the variables, in creation order.
        value_norm: Of each value, [variables].
        grad_norm: Of each gradient, [variables]; 0 where there is none.
        has_grad: Which variables have a gradient.

    Example:
        >>> norms = store.norms()
        >>> norms["weight"]
        (tensor(2.), None)
        >>> dict(zip(norms.names, norms.value_norm.tolist()))  # all numbers at once: one wait for the device
        {'weight': 2.0}
    """

    names: tuple[str, ...]
    value_norm: Tensor
    grad_norm: Tensor
    has_grad: tuple[bool, ...]

    def __getitem__(self, name: str) -> Pair:
        if name not in self._rows:
            raise KeyError(f"{name!r} is no variable that these norms are of")
        row = self._rows[name]
        return self.value_norm[row], self.grad_norm[row] if self.has_grad[row] else None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> ItemsView[str, Pair]:
        """Every name with its pair."""
        return self._pairs.items()

    def values(self) -> ValuesView[Pair]:
        """Every pair."""
        return self._pairs.values()

    def __repr__(self) -> str:
        return f"VariableNorms({len(self)} variables, {sum(self.has_grad)} with a gradient)"

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    @cached_property
    def _pairs(self) -> dict[str, Pair]:
        """All at once, for who reads all: half of the time of one after the other."""
        rows = zip(self.names, self.value_norm.unbind(), self.grad_norm.unbind(), self.has_grad, strict=True)
        return {name: (value, grad if there else None) for name, value, grad, there in rows}


@unwatched
def norms(gradients: Gradients, order: float = 2.0) -> VariableNorms:
    """See `VarStore.norms`."""
    plans = checked(gradients.plans)
    collected = gradients.collect(plans)
    values, grads = plans.variable_norms(collected.sources, order, values=True)
    found = VariableNorms(plans.names, values, grads, tuple(gradients.hits(plans, collected)))
    watched = list(map(_requires_grad, plans.wholes))
    return found if all(watched) else _only(found, [row for row, is_on in enumerate(watched) if is_on])


def _only(norms: VariableNorms, rows: list[int]) -> VariableNorms:
    """Those of some of the variables."""
    chosen = torch.tensor(rows, dtype=torch.int64).to(norms.value_norm.device, non_blocking=True)
    names, there = tuple(norms.names[row] for row in rows), tuple(norms.has_grad[row] for row in rows)
    return VariableNorms(names, norms.value_norm[chosen], norms.grad_norm[chosen], there)


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
