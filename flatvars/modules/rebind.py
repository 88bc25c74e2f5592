"""Rebinding: what replaced the store's memory, or a Parameter in a module, becomes the store's; or is left again."""

from __future__ import annotations

import dataclasses

import torch

from ..errors import AliasError
from ..memory.spec import is_dense
from ..memory.streams import VALUES
from ..variables.binding import bind
from ..variables.guard import current_param
from ..variables.registry import Registry


@torch.no_grad()
def rebind(registry: Registry) -> list[str]:
    """Takes in what replaced the store's memory or parameters; see `VarStore.rebind`."""
    registry.settle()
    params = [current_param(variable) for variable in registry.variables]
    specs = []
    for variable, param in zip(registry.variables, params, strict=True):
        if tuple(param.shape) != tuple(variable.shape):
            raise AliasError(
                f"variable {variable.name!r} now has shape {tuple(param.shape)} instead of {tuple(variable.shape)}; "
                "a store keeps shapes: adopt the changed module into a new VarStore"
            )
        stride = param.stride() if is_dense(tuple(param.shape), param.stride()) else variable.spec.stride
        specs.append(dataclasses.replace(variable.spec, dtype=param.dtype, stride=stride))
    devices = {param.device for param in params} or {registry.device}
    if len(devices) > 1:
        raise AliasError(f"variables now lie on several devices ({devices}); move the whole module to one of them")
    strayed = {
        variable.index: param.detach()
        for variable, param in zip(registry.variables, params, strict=True)
        if not registry.is_bound(variable, param)
    }
    for variable, param in zip(registry.variables, params, strict=True):
        if param is not variable.param:
            variable.param = param
            variable.places = [place.renewed() for place in variable.places]
            registry.claims.add(variable)
    registry.recarve(specs, devices.pop(), check=False)
    for i, values in strayed.items():
        registry.view(VALUES, registry.variables[i]).copy_(values)
    return [registry.variables[i].name for i in strayed]


def restore_aliases(registry: Registry) -> None:
    """Binds every Parameter to the store's memory again; see `VarStore.restore_aliases`."""
    registry.settle()
    for variable in registry.variables:
        bind(variable, registry.piece(variable))
    registry.generation += 1
