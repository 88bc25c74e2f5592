"""Buffers of modules: which a store takes, and which it leaves where they are."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..variables.lazy import is_lazy
from ..variables.registry import Adopted, Registry, variable_of
from ..variables.variable import byte_range
from .tensors import Found


def is_persistent(module: nn.Module, attribute: str) -> bool:
    """Whether a module's state dict holds its buffer; a scripted module's holds all."""
    return attribute not in module._non_persistent_buffers_set


def buffers_beside(registry: Registry) -> dict[str, Tensor]:
    """Persistent buffers of modules whose parameters are shards of this registry: they stay with the module."""
    found = {}
    for module, adopted in list(registry.adopted.items()) if registry.sharding is not None else ():
        for path, owner in module.named_modules():
            for attribute, tensor in owner._buffers.items():
                if tensor is not None and is_persistent(owner, attribute):
                    found[".".join(part for part in (adopted.prefix, path, attribute) if part)] = tensor
    return found


def takable(found: list[Found], former: Registry | None = None) -> list[Found]:
    """What of a module's tensors a store takes: every parameter, and the buffers that it can hold.

    Args:
        former: A store that gives up what it holds of these.
    """
    if all(entry.is_parameter for entry in found):
        return found
    devices = {entry.tensor.device for entry in found if entry.is_parameter and not entry.tensor.is_meta}
    shared = _sharing([entry.tensor for entry in found if not entry.is_parameter], former)
    return [
        entry
        for entry in found
        if entry.is_parameter
        or (
            id(entry.tensor) not in shared
            and why_left(entry.tensor, former) is None
            and _lies_with(entry.tensor, devices)
        )
    ]


def _lies_with(tensor: Tensor, devices: set[torch.device]) -> bool:
    """Whether a buffer lies where parameters do: one that a module keeps elsewhere is wanted there."""
    return not devices or tensor.is_meta or tensor.device in devices


def why_left(tensor: Tensor, former: Registry | None = None) -> str | None:
    """Why no store can take a buffer, or None; `former` gives up what it holds."""
    if is_lazy(tensor):
        return "without a shape yet"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "sparse or quantized"
    if tensor.is_complex():
        return str(tensor.dtype)
    if type(tensor) is not Tensor:
        return f"a {type(tensor).__name__}"
    held = variable_of(tensor)
    return None if held is None or held[0] is former else "in a store already"


def _sharing(tensors: Iterable[Tensor], former: Registry | None) -> set[int]:
    """Identities of buffers that share memory with another buffer: taken, they would come apart."""
    ranges = [
        (*byte_range(tensor), tensor)
        for tensor in tensors
        if tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta and why_left(tensor, former) is None
    ]
    ranges.sort(key=lambda each: each[:2])
    shared: set[int] = set()
    end, last = 0, None
    for first, stop, tensor in ranges:
        if last is not None and first < end:
            shared |= {id(tensor), id(last)}
        if stop > end:
            end, last = stop, tensor
    return shared


# What a store does not hold -------------------------------------------------------------------------------------------


LAZY = "lazy: taken in after the first forward pass"


def left_out(registry: Registry, *, unasked: bool = False) -> dict[str, str]:
    """Lazy tensors and persistent buffers of adopted modules that the registry does not hold, by name, and why.

    Args:
        unasked: Without those of modules that were adopted with `buffers=False`.
    """
    found = {late.names[0]: LAZY for late in registry.late}
    for module, adopted in list(registry.adopted.items()):
        if unasked and not adopted.buffers:
            continue
        for path, owner in module.named_modules():
            for attribute, tensor in owner._buffers.items():
                if tensor is None or not is_persistent(owner, attribute) or _holds(registry, tensor):
                    continue
                name = ".".join(part for part in (adopted.prefix, path, attribute) if part)
                former = registry.by_name.get(name)
                # One that was replaced is taken in with the next look.
                if (former is None or former.name != name) and name not in found:
                    found[name] = _reason(tensor, adopted)
    return found


def _holds(registry: Registry, tensor: Tensor) -> bool:
    held = variable_of(tensor)
    return held is not None and held[0] is registry


def _reason(tensor: Tensor, adopted: Adopted) -> str:
    if not adopted.buffers:
        return "buffers=False"
    return why_left(tensor) or "shares memory, lies on another device, or came after the module was adopted"


def warn_left_out(registry: Registry) -> None:
    """Warns, once a name, of persistent buffers that are missing from what is saved and that nobody left out."""
    found = {n: why for n, why in left_out(registry, unasked=True).items() if n not in registry.told_left_out}
    if not found:
        return
    registry.told_left_out.update(found)
    shown = "; ".join(f"{name!r}: {why}" for name, why in itertools.islice(found.items(), 10))
    warnings.warn(
        f"{len(found)} tensors of the module's state dict are not in the store, and so in no file or snapshot of it "
        f"({shown}). Call store.add_buffers(module) to take in what was registered since; keep what it cannot hold "
        "yourself, or adopt with buffers=False to say that none is wanted",
        stacklevel=4,
    )
