"""Putting variables into a module: what all layers do.

A module is built on the meta device, where it costs nothing, and the variables take the places of its tensors. A
parameter that is assigned to such a module later is noticed, as in adopted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from ..init import Initializer
from ..modules.adopt import own
from ..modules.declare import Request
from ..modules.meta import materialize_buffers
from ..modules.path import Path

Module = TypeVar("Module", bound=nn.Module)
# What a layer asks for, in creation order: attribute and initializer.
Wanted = Sequence[tuple[str, Initializer]]


def furnish(path: Path, module: Module, wanted: Wanted, dtype: torch.dtype | None) -> Module:
    """Declares variables for a module that lies on meta, and puts them in.

    Args:
        path: Where, with the path's param group.
        wanted: The attributes that become variables; those the module has as None (`bias=False`) do not.
        dtype: Of the variables, buffers too; the path's if not given.

    Raises:
        NameTakenError, SpecError: as `Path.var`; nothing was declared then.
    """
    declarations = path._declarations
    tensors = [(attribute, initializer, getattr(module, attribute)) for attribute, initializer in wanted]
    present = [(attribute, initializer, tensor) for attribute, initializer, tensor in tensors if tensor is not None]
    requests = [
        Request(
            path.name(attribute),
            tuple(tensor.shape),
            initializer,
            dtype or path.dtype,
            trainable=isinstance(tensor, nn.Parameter),
            group=path.group,
        )
        for attribute, initializer, tensor in present
    ]
    for (attribute, _, _), variable in zip(present, declarations.create_all(requests), strict=True):
        own(declarations.registry, variable, module, attribute)
    materialize_buffers(module, path.device)
    return module
