"""Lazy modules: which of their tensors a store will take in, once they have a shape."""

from __future__ import annotations

import torch

from ..variables.lazy import Late, is_lazy, wait_for
from ..variables.registry import Registry
from .tensors import Found


def await_lazy(registry: Registry, found: list[Found], dtype: torch.dtype | None) -> list[Late]:
    """Makes a registry wait for the lazy ones of a module's tensors, which are given in the module's order."""
    order = [entry.names[0] for entry in found]
    late = [Late(e.names, e.places, e.is_parameter, order) for e in found if is_lazy(e.tensor)]
    wait_for(registry, late, dtype)
    return late
