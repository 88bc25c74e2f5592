"""A registry with what looks after its gradients and masks, and the way from the one to the others."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ..backend import CORRECTED, SPLIT, STOCHASTIC, Format
from ..distributed.group import Group
from ..distributed.shards import Sharding
from ..variables.carving import ERROR, FOLLOW, OnMoved
from ..variables.registry import Registry
from .cycle import Gradients, Mode
from .gathered import Gathered
from .masks import ElementMasks
from .overlap import Overlap
from .sharded import Sharded
from .views import Views

ValueFormat = Literal["split", "corrected", "stochastic"]
VALUE_FORMATS: dict[ValueFormat, Format] = {"split": SPLIT, "corrected": CORRECTED, "stochastic": STOCHASTIC}

MODES: dict[Mode, type[Gradients]] = {kind.mode: kind for kind in (Gathered, Views)}


def make_registry(
    device: torch.device,
    mode: Mode,
    seed: int = 0,
    on_moved: OnMoved = FOLLOW,
    group: Group | None = None,
    values: ValueFormat | None = None,
    sharding: Sharding | None = None,
) -> Registry:
    """An empty registry with gradients and element masks.

    Args:
        mode: "gather" or "views".
        on_moved: "follow" or "error".
        group: The ranks that share its state, if there are several.
        values: "split", "corrected", "stochastic" or None: how bfloat16 values are stored.
        sharding: Where values are shards that stay where they are; with "gather" alone.
    """
    if on_moved not in (FOLLOW, ERROR):
        raise ValueError(f"on_moved={on_moved!r} is not known; use 'follow' or 'error'")
    if mode not in MODES:
        raise ValueError(f"grads={mode!r} is not a mode; use 'gather' or 'views'")
    registry = Registry(device, MODES[mode] if sharding is None else Sharded, ElementMasks, seed)
    if sharding is not None:
        registry.keep_in_place(sharding)
    registry.on_moved = on_moved
    registry.group = group
    if group is not None and group.bucket_bytes is not None:
        gradients = gradients_of(registry)
        gradients.overlap = Overlap(gradients, group)
    if values is None:
        return registry
    if values not in VALUE_FORMATS:
        names = ", ".join(map(repr, VALUE_FORMATS))
        raise ValueError(f"values={values!r} is no format of values; use {names}, or None")
    if sharding is not None:
        raise ValueError(
            f"values={values!r} is of values in the store's own buffers, and shards stay where they are; leave it out"
        )
    registry.store_values_as(VALUE_FORMATS[values])
    return registry


def values_of(registry: Registry) -> ValueFormat | None:
    """How bfloat16 values of a registry are stored, as `make_registry` is told it."""
    return next((name for name, format_ in VALUE_FORMATS.items() if format_ == registry.value_format), None)


def gradients_of(registry: Registry) -> Gradients:
    """The gradients of a registry with all they offer; its variables see less of them."""
    found: Any = (
        registry.gradients
    )  # an instance of an abstract class is recognized in a microsecond, and each step asks
    return found  # type: ignore[no-any-return]


def masks_of(registry: Registry) -> ElementMasks:
    """The element masks of a registry with all they offer."""
    assert isinstance(registry.masks, ElementMasks)
    return registry.masks
