"""What callers hand over: errors that say what was given and what to do, where Python's would name an attribute."""

from __future__ import annotations

from torch import nn

from ..variables.registry import HasRegistry, Registry


def registry_in(store: object, method: str) -> Registry:
    """The registry of another store.

    Raises:
        TypeError: it is none, but a module or its state dict.
    """
    if isinstance(store, HasRegistry) and isinstance(store.registry, Registry):
        return store.registry
    raise TypeError(
        f"{method} takes a VarStore, and a {type(store).__name__} was given; adopt a module first with "
        "VarStore.from_module(module), or load a state dict with module.load_state_dict(...)"
    )


def check_module(module: object) -> None:
    """Raises TypeError for what is no module."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"a torch.nn.Module is needed, and a {getattr(module, '__name__', type(module).__name__)} was given; "
            "single tensors are added with store.add(name, tensor)"
        )
