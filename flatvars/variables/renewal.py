"""Buffers that modules replaced: what stands there now becomes the variable's again. Never a fault of a step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..memory.streams import VALUES
from .claims import owner_of
from .following import Mover, is_held, leave_behind, spec_of, take_in, why_unheld
from .variable import Variable, overlaps

Standing = dict[Variable, Tensor]


@torch.no_grad()
def renew(registry: Mover, buffers: Iterable[Variable]) -> Standing:
    """Makes what modules hold instead of buffers the variables': values, and another shape or dtype as well.

    A buffer that is nowhere any more keeps its values. One whose place holds another variable's tensor by now, tied to
    it after adoption, takes that one's values. Where modules hold different tensors instead of one, the first is meant.

    Returns:
        What stands in the place of buffers and cannot be taken in; all others are done.
    """
    found = replaced(registry, buffers)
    refused = {v: tensor for v, tensor in found.items() if why_unheld(tensor) or tensor.device != registry.device}
    taken = {v: tensor for v, tensor in found.items() if v not in refused and not _is_tied(v, tensor)}
    for variable, tensor in found.items():
        if _is_tied(variable, tensor):
            if tensor.shape == variable.param.shape:
                variable.param.copy_(tensor)
            else:
                refused[variable] = tensor
    leave_behind(taken)
    same = all(spec_of(variable, tensor) == variable.spec for variable, tensor in taken.items())
    if same and not any(map(is_held, taken)):
        for variable, tensor in taken.items():
            if overlaps(tensor, registry.view(VALUES, variable)):  # its own, in another order
                tensor.data = tensor.detach().clone()
            registry.move_in(variable, tensor)
    else:
        take_in(registry, [taken.get(variable, variable.param) for variable in registry.variables])
    for variable, tensor in taken.items():
        variable.places = [place for place in variable.places if place.tensor() is None or place.tensor() is tensor]
    return refused


def replaced(registry: Mover, buffers: Iterable[Variable]) -> Standing:
    """What modules hold instead of buffers, and buffers whose own memory was replaced."""
    found: Standing = {}
    for variable in buffers:
        held = (place.tensor() for place in variable.places)
        tensor = next((tensor for tensor in held if tensor is not None), variable.param)
        if tensor is not variable.param or not registry.is_bound(variable, tensor):
            found[variable] = tensor
        elif len(variable.places) > 1:
            variable.places = [place for place in variable.places if place.tensor() is tensor] or variable.places
    return found


def moved_along(registry: Mover, buffers: Iterable[Variable]) -> Standing:
    """The buffers that were replaced and that a store can hold, wherever they lie: the whole module may have moved."""
    found = replaced(registry, buffers)
    return {v: tensor for v, tensor in found.items() if not why_unheld(tensor) and not _is_tied(v, tensor)}


def _is_tied(variable: Variable, tensor: Tensor) -> bool:
    return tensor is not variable.param and owner_of(tensor) is not None
