"""What ranks must have in common to step one model, in words: an error can then say what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..gradients.plans import PlanSet
from ..memory.streams import FROZEN_ELEMENTS
from ..variables.registry import Registry
from ..variables.variable import Variable

DIGEST_BITS = 20


class Numbered(Protocol):
    """What is asked of an optimizer."""

    param_groups: list[dict[str, Any]]
    max_norm: float | None
    skip_nonfinite: bool
    state_dtype: torch.dtype | None
    state_format: Any


def numbers_of(optimizer: Numbered) -> dict[str, str]:
    """What a step reads of an optimizer, by name. Numbers on a GPU are not read: that would wait for it."""
    facts = {"max_norm": repr(optimizer.max_norm), "skip_nonfinite": repr(optimizer.skip_nonfinite)}
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name != "params":
                facts[f"{name} of param group {number}"] = _word(value)
    return facts


def members_of(optimizer: Numbered, groups: Sequence[Sequence[Variable]], plans: PlanSet) -> dict[str, str]:
    """Who is stepped and how, by name of the variable; waits for the device, where elements are masked.

    Ranks that say the same here send each other the same messages.

    Args:
        groups: The variables of each param group.
        plans: Over those that train.
    """
    facts = {"class": type(optimizer).__name__}
    facts |= {name: repr(getattr(optimizer, name)) for name in ("state_dtype", "state_format")}
    rules = {plans.variables[k].id: f" by {part.kind.name}" for part in plans.parts if part.kind for k in part.order}
    masks = checksums_of_masks(plans.registry, [variable for variables in groups for variable in variables])
    for number, variables in enumerate(groups):
        for variable in variables:
            trains = f"trained{rules.get(variable.id, '')}" if variable.trains else "frozen"
            mask = f", with a mask of checksum {masks[variable.id]}" if variable.id in masks else ""
            spec = variable.spec
            facts[variable.name] = f"{spec.shape} {spec.dtype} in param group {number}, {trains}{mask}"
    return facts


def checksums_of_masks(registry: Registry, variables: Iterable[Variable]) -> dict[int, str]:
    """What stands for the masks of variables that have one, by id."""
    found = []
    for variable in variables:
        held = registry.streams.find(FROZEN_ELEMENTS, variable.dtype) if variable.spec.has_room else None
        if held is not None:
            found.append((variable.id, _sums(held.view(variable.span))))
    sums = torch.stack([one for _, one in found]).tolist() if found else []
    return {key: f"{low:x}-{high:x}" for (key, _), (low, high) in zip(found, sums, strict=True) if low}


def values_taken_in(variables: Iterable[Variable]) -> dict[str, str]:
    """What stands for the values of some variables, by name; waits for the device, where there are any."""
    ordered = sorted(variables, key=lambda variable: variable.name)
    if not ordered:
        return {}
    sums = torch.stack([_sums(variable.value) for variable in ordered]).tolist()
    return {
        f"the values of {variable.name}, which came from outside of the store": f"those of checksum {low:x}-{high:x}"
        for variable, (low, high) in zip(ordered, sums, strict=True)
    }


def _sums(values: Tensor) -> Tensor:
    """Two numbers of all bits, int64 [2], whatever the order in which they are added up."""
    flat = values.as_strided((values.numel(),), (1,)) if values.numel() else values.reshape(-1)
    bits = flat.view(_BITS[values.dtype.itemsize]).long() & 0xFFFFFFFF
    places = torch.arange(len(bits), device=bits.device) % 65_521 + 1
    return torch.stack([bits.sum(), (bits * places).sum()]) & 0x7FFFFFFFFFFFFFFF


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digests_of(facts: Mapping[str, str]) -> tuple[int, int]:
    """Two numbers of `DIGEST_BITS` bits."""
    digest = hashlib.sha256(repr(list(facts.items())).encode()).digest()
    mask = (1 << DIGEST_BITS) - 1
    return int.from_bytes(digest[:4], "little") & mask, int.from_bytes(digest[4:8], "little") & mask


def _word(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor on a GPU" if value.is_cuda else repr(value.tolist())
    return repr(value)
