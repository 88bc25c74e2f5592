"""Buffers that modules replaced: what stands there now becomes the variable's again. Never a fault of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .claims import owner_of
from .variable import Variable


class Renewer(Protocol):
    """What taking a tensor in asks of the registry."""

    device: torch.device

    def is_bound(self, variable: Variable, param: Tensor) -> bool: ...

    def move_in(self, variable: Variable, param: Tensor) -> None: ...

    def exchange(self, pairs: Sequence[tuple[Variable, Tensor]]) -> None: ...


@torch.no_grad()
def renew(registry: Renewer, buffers: Iterable[Variable]) -> list[tuple[Variable, Tensor]]:
    """Makes what modules hold instead of buffers the variables': values, and another shape or dtype as well.

    A buffer that is nowhere any more keeps its values. One whose place holds another variable's tensor by now, tied to
    it after adoption, takes that one's values. Where modules hold different tensors instead of one, the first is meant.

    Returns:
        Buffers that were replaced by a tensor that no store can take, with it; all others are done.
    """
    refused: list[tuple[Variable, Tensor]] = []
    changed: list[tuple[Variable, Tensor]] = []
    for variable in buffers:
        tensor = next((t for t in (place.tensor() for place in variable.places) if t is not None), variable.param)
        if tensor is not variable.param and owner_of(tensor) is not None:
            if tensor.shape == variable.param.shape:
                variable.param.copy_(tensor)
            else:
                refused.append((variable, tensor))
            continue
        if tensor is not variable.param or not registry.is_bound(variable, tensor):
            if not can_take(registry, tensor):
                refused.append((variable, tensor))
                continue
            if (tensor.shape, tensor.dtype) == (variable.shape, variable.dtype):
                registry.move_in(variable, tensor)
            else:
                changed.append((variable, tensor))
        variable.places = [place for place in variable.places if place.tensor() is None or place.tensor() is tensor]
    if changed:
        registry.exchange(changed)
    return refused


def can_take(registry: Renewer, tensor: Tensor) -> bool:
    """Whether a tensor that replaced a buffer may be taken in as it is."""
    plain = type(tensor) is Tensor and tensor.layout == torch.strided
    return plain and not tensor.is_quantized and not tensor.is_complex() and tensor.device == registry.device
