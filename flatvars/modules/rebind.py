"""Rebinding: what replaced the store's memory, or a Parameter in a module, becomes the store's; or is left again."""

from __future__ import annotations

from ..errors import AliasError
from ..variables.binding import bind
from ..variables.following import take_in, why_unheld
from ..variables.guard import current_param, twin_of
from ..variables.registry import Registry


def rebind(registry: Registry) -> list[str]:
    """Takes in what replaced the store's memory or parameters; see `VarStore.rebind`."""
    with registry.lock:
        registry.settle()
        twins = [(variable, twin) for variable in registry.variables if (twin := twin_of(variable)) is not None]
        tensors = [current_param(variable) for variable in registry.variables]
        for variable, tensor in zip(registry.variables, tensors, strict=True):
            if reason := why_unheld(tensor):
                raise AliasError(f"the store cannot take variable {variable.name!r} in: {reason}; nothing was changed")
        taken = take_in(registry, tensors)
        registry.note_taken_in(registry.by_name[name] for name in taken)
        for variable, twin in twins:
            registry.absorb(variable, twin)
        return taken


def restore_aliases(registry: Registry) -> None:
    """Binds every Parameter to the store's memory again; see `VarStore.restore_aliases`."""
    registry.settle()
    for variable in registry.variables:
        bind(variable, registry.piece(variable))
    registry.generation += 1
