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


def bytes_of_buckets(bucket_cap_mb: float | None, mesh: object) -> int | None:
    """What `bucket_cap_mb=` says, in bytes; None where it was not given.

    Raises:
        ValueError: it is not above 0, or there is no mesh to average over.
    """
    if bucket_cap_mb is None:
        return None
    if mesh is None:
        raise ValueError(
            f"bucket_cap_mb={bucket_cap_mb!r} is of gradients that are averaged over ranks, and no mesh= was given: "
            "pass both, or leave it out"
        )
    if not bucket_cap_mb > 0.0:
        raise ValueError(
            f"bucket_cap_mb={bucket_cap_mb!r} was given, and a number of MiB above 0 is needed: DDP has 25"
        )
    return int(bucket_cap_mb * 1024 * 1024)
