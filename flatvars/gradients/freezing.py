"""Which variables train: freezing, and following `requires_grad` flags that plain torch flipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..memory.spec import VarSpec
from ..variables.registry import Registry
from ..variables.variable import Variable


def freeze(registry: Registry, variables: Sequence[Variable], clear_grad: bool = True) -> None:
    """Stops training variables; see `VarStore.freeze`."""
    with registry.lock:
        for variable in variables:
            if variable.requires_grad:
                variable.whole.requires_grad_(False)
                variable.frozen = True
        if clear_grad:
            registry.gradients.zero(True, variables)
            for variable in variables:
                variable.param.grad = variable.whole.grad = None
        follow_flags(registry)


def unfreeze(registry: Registry, variables: Sequence[Variable], selected: bool) -> None:
    """Trains variables again: those that `freeze` froze, and if they were `selected` by name every Parameter."""
    with registry.lock:
        for variable in variables:
            if variable.frozen or (selected and variable.is_parameter):
                variable.whole.requires_grad_(True)
        follow_flags(registry)


def follow_flags(registry: Registry) -> None:
    """Follows `requires_grad` flags, flipped here or by plain torch; re-carves where a variable lacks room."""
    with registry.lock:
        for variable in registry.variables:
            variable.frozen = variable.frozen and not variable.requires_grad
        if any(v.requires_grad and not v.spec.has_room for v in registry.variables):
            registry.recarve(lambda v: with_room(v.spec, v.spec.has_room or v.requires_grad))
        else:
            registry.generation += 1


def flags_moved(registry: Registry) -> bool:
    """Whether plain torch made a variable trainable that the store has frozen, or has no room for."""
    return any(v.requires_grad for v in registry.variables if v.frozen or not v.spec.has_room)


def compact(registry: Registry) -> None:
    """Gives back the gradient and state memory of frozen variables; their state is forgotten, and no gradient lost."""
    with registry.lock:
        registry.settle()
        registry.guard.check_memory()  # what was moved is back, and its gradient found, before anything is given up
        leaving = {v.id for v in registry.variables if v.spec.has_room and not _is_wanted(registry, v)}
        if leaving:
            registry.check_leaving("compact()")
        registry.gradients.release([v for v in registry.variables if v.id in leaving])
        registry.recarve(lambda v: with_room(v.spec, v.requires_grad or (v.spec.has_room and v.id not in leaving)))


def _is_wanted(registry: Registry, variable: Variable) -> bool:
    """Whether a step may move a variable that has room: plain `requires_grad_(False)` leaves a gradient to be stepped.

    Where the store has frozen it, its gradient waits in `.grad` for as long as it is frozen, and needs no room.
    """
    return variable.requires_grad or (not variable.frozen and registry.gradients.of(variable) is not None)


def with_room(spec: VarSpec, room: bool) -> VarSpec:
    """The spec with or without room for gradients and state; itself if nothing changes."""
    return spec if spec.has_room == room else dataclasses.replace(spec, has_room=room)
