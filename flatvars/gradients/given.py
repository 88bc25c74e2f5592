"""Gradients that a user hands over, by name or in creation order, brought into the order of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor

from ..errors import GradientError, UnknownNameError
from .plans import PlanSet

_trains = attrgetter("requires_grad")


def _device(grad: Tensor | None) -> Any:
    return None if grad is None else grad.device


def aligned(plans: PlanSet, grads: Mapping[str, Tensor] | Sequence[Tensor | None]) -> list[Tensor | None]:
    """One gradient or None for each variable of the plans.

    Raises:
        UnknownNameError: a name that the store does not hold.
        GradientError: another number of gradients than of variables, or one on another device.
    """
    registry = plans.registry
    found = _by_name(plans, grads) if isinstance(grads, Mapping) else _in_order(plans, grads)
    if {None, registry.device}.issuperset(map(_device, found)):
        return found
    for variable, grad in zip(plans.variables, found, strict=True):
        if grad is not None and grad.device != registry.device:
            raise GradientError(
                f"the gradient of {variable.name!r} lies on {grad.device}, but the store on "
                f"{registry.device}; move it there first"
            )
    return found


def _by_name(plans: PlanSet, grads: Mapping[str, Tensor]) -> list[Tensor | None]:
    by_name = plans.registry.by_name
    unknown = [name for name in grads if name not in by_name]
    if unknown:
        raise UnknownNameError(f"gradients were given for {unknown}, which the store does not hold")
    by_id = {by_name[name].id: grad for name, grad in grads.items()}
    return [by_id.get(v.id) for v in plans.variables]


def _in_order(plans: PlanSet, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    registry = plans.registry
    whole = registry.sharding is None and len(grads) == len(plans.variables) == len(registry.variables)
    if whole and all(map(_trains, plans.params)):  # nearly always, and asked without a turn for each
        return list(grads)
    trainable = registry.declared_trainable()
    if trainable == plans.variables and len(grads) == len(trainable):
        return list(grads)
    if len(grads) != len(trainable):
        raise GradientError(
            f"{len(grads)} gradients were given for {len(trainable)} trainable variables; give one per "
            "variable in creation order (None where there is none), or a mapping from names"
        )
    given = {v.id: grad for v, grad in zip(trainable, grads, strict=True)}
    return [given.get(v.id) for v in plans.variables]
