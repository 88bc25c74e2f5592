"""What a store tells of itself: its one region, a table, and whether everything lies where it should."""

from __future__ import annotations

import torch

from ..errors import FlatvarsError
from ..modules.buffers import left_out
from ..variables.registry import Registry
from ..variables.variable import Variable


def only_region(registry: Registry, *, gradients: bool = False) -> torch.dtype:
    """The dtype of a uniform store, or of all that has gradients.

    Raises:
        FlatvarsError: it has several, or none.
    """
    regions = [region for region in registry.layout.regions if region.trainable_numel or not gradients]
    if len(regions) != 1:
        raise FlatvarsError(
            f"this store has {len(regions)} regions ({', '.join(str(r.dtype) for r in regions)}), so it has no single "
            "buffer; use values_of(dtype) and grads_of(dtype)"
        )
    return regions[0].dtype


def summary(registry: Registry) -> str:
    """See `VarStore.summary`."""
    rows = [f"{v.name:<48} {tuple(v.shape)!s:<20} {v.dtype!s:<16} {_state(v)}" for v in registry.variables]
    streams = registry.streams
    total = f"{len(rows)} variables, {streams.nbytes:,} bytes in {', '.join(streams.names())}"
    left = [f"left out: {name} ({why})" for name, why in left_out(registry).items()]
    return "\n".join([*rows, total, *left])


def _state(variable: Variable) -> str:
    if variable.is_buffer:
        return "buffer"
    return "trainable" if variable.requires_grad else "frozen"


def check_layout(registry: Registry) -> None:
    """Raises FlatvarsError where variables overlap, or padding is not zero. Reads every byte."""
    for region in registry.layout.regions:
        end, values = 0, registry.streams.values(region.dtype)
        spans = [v.span for v in registry.variables if v.dtype == region.dtype]
        for span in sorted(spans, key=lambda span: (span.offset, span.stop)):
            if span.offset < end or bool(torch.any(values[end : span.offset] != 0)):
                raise FlatvarsError(f"variable {span.spec.name!r} overlaps another, or the padding before it is not 0")
            end = span.offset + span.numel
        if bool(torch.any(values[end:] != 0)):
            raise FlatvarsError(f"the padding at the end of the {region.dtype} region is not 0")
