"""What a store tells of itself: its one region, a table, and whether everything lies where it should."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import FlatvarsError
from ..modules.buffers import left_out
from ..optim.stats import COLUMNS, COUNTS, VariableStats
from ..variables.carving import FOLLOW
from ..variables.registry import Registry
from ..variables.variable import Variable

STATES = ("trainable", "frozen", "buffer")


def looked_at(registry: Registry) -> Registry:
    """The registry, with what left it since the last look taken in again; not where users want to be asked first."""
    with registry.lock:  # or another thread's carve would look like memory that left
        registry.settle()
        if registry.on_moved == FOLLOW:
            registry.guard.check_memory()
            registry.guard.renew_buffers()
    return registry


def region_of(registry: Registry, dtype: torch.dtype) -> torch.dtype:
    """The dtype, if the store has a region of it.

    Raises:
        FlatvarsError: it has none.
    """
    there = [region.dtype for region in registry.layout.regions]
    if dtype not in there:
        raise FlatvarsError(
            f"this store has no variable of {dtype}, but of {', '.join(map(str, there)) or 'no dtype at all'}; "
            "store.regions lists them"
        )
    return dtype


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
    streams = registry.streams
    rows = [(v.name, str(tuple(v.shape)), _short(v.dtype), f"{v.numel:,}", _state(v)) for v in registry.variables]
    elements = dict.fromkeys(STATES, 0)
    for variable in registry.variables:
        elements[_state(variable)] += variable.numel
    trainable, frozen, buffers = elements.values()
    total = f"{len(rows)} variables, {sum(elements.values()):,} elements: "
    total += f"{trainable:,} trainable, {frozen:,} frozen, {buffers:,} in buffers"
    held = [
        (f"{name}.{part.name}" if part.name else name, _short(buffer.dtype), f"{buffer.nbytes:,}")
        for name, stream in streams.items()
        for part, buffer in stream.named()
    ]
    return "\n".join(
        [
            *_table(("variable", "shape", "dtype", "elements", "state"), rows, "<<<><"),
            total,
            "",
            *_table(("stream", "dtype", "bytes"), held, "<<>"),
            f"{streams.nbytes:,} bytes on {registry.device}",
            *(f"left out: {name} ({why})" for name, why in left_out(registry).items()),
        ]
    )


def summary_of(stats: VariableStats) -> str:
    """The numbers that an optimizer tells of its variables. Waits for the device."""
    columns = [getattr(stats, column).tolist() for column in COLUMNS]
    rows = [
        (name, *(_told(column, number) for column, number in zip(COLUMNS, numbers, strict=True)))
        for name, *numbers in zip(stats, *columns, strict=True)
    ]
    return "\n".join(_table(("variable", *COLUMNS), rows, "<" + ">" * len(COLUMNS)))


def _told(column: str, number: float) -> str:
    if number != number:
        return "-" if column in COUNTS else "nan"
    return f"{int(number):,}" if column in COUNTS else f"{number:.3g}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], sides: str) -> list[str]:
    """Lines of a table whose columns are as wide as what they hold.

    Args:
        sides: "<" or ">" of each column: where its content begins.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _state(variable: Variable) -> str:
    if variable.is_buffer:
        return STATES[2]
    return STATES[0] if variable.requires_grad else STATES[1]


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
