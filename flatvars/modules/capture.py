"""Capturing: which modules are built in a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules import module as torch_module


@contextmanager
def building() -> Iterator[list[nn.Module]]:
    """Notes the modules that are built in this context; after it, the list holds those with no parent among them."""
    built: dict[int, nn.Module] = {}
    children: set[int] = set()

    def on_parameter(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        built[id(module)] = module

    def on_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        built[id(module)] = module
        if child is not None:
            built[id(child)] = child
            children.add(id(child))

    handles = [
        torch_module.register_module_parameter_registration_hook(on_parameter),
        torch_module.register_module_module_registration_hook(on_module),
    ]
    roots: list[nn.Module] = []
    try:
        yield roots
    finally:
        for handle in handles:
            handle.remove()
        roots.extend(module for key, module in built.items() if key not in children)
