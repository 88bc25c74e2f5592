"""The record of a launch that steps, or that takes the sums before a step: what it is made of, and who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..addresses import Sources
from ..formats import Stored
from ..launches import StepInputs, Tables
from ..rules import Rule
from .compile import DTYPES, compiled
from .gradients import converter_of, eraser_of
from .memory import read_byte, read_double, read_float, read_int, read_int32, write_float, write_int32
from .prepared import Prepared, read_of
from .record import RecordLayout, address_of, address_of_row, row_of

LAYOUT = RecordLayout(
    "tiles",  # address of [tiles, 5] int64
    "variables",  # address of [variables, 3] int64: first tile, number of tiles, slot
    "variable_count",
    "sources",  # address of [variables, 2] int64: address (0: untouched) and dtype code
    "written",  # address of uint8 [variables], 0 where a view holds no gradient; 0 where all sources count
    "updater",  # address of the function for the elements of a tile
    "converter",  # address of the function for gradients of other dtypes
    "as_they_are",  # whether the updater loads gradients of the dtype that they all have
    "eraser",  # address of the function that makes -0.0 of gradients that were read; 0 where they stay
    "hyper",  # address of [groups, columns]
    "columns",
    "wide",  # whether `hyper` is float64, whatever the arithmetic is
    "steps",  # address of float32 [slots] in/out
    "own",  # address of the addresses of float32 [slots] in/out: scalars of the variables
    "own_count",
    "kept",  # address of float32 [variables, own_count]: the new ones, until all tiles are done
    "norm",  # address of the norm
    "norm_is_double",
    "clip",  # flags
    "skip",
    "grad_scale",  # addresses of float32, or 0
    "found_inf",
    "skipped",  # address of int32 in/out, or 0
    "values",  # address of the stream, in/out
    "places",  # address of int64 [variables]: where each one's values lie; 0 where they lie in the stream
    "value_size",  # bytes of a value
    "base",  # element of the region at which the states begin
    "frozen",  # address of uint8 [numel]
    "states",  # address of the addresses of the state streams, in/out
    "keys",  # address of int64 [1 + slots]: seed, then keys of the variables' names; read by updaters that draw
    "unit_starts",  # address of int64 [variables]: first unit of each; 0 where nothing is stored by units
    "unit_base",  # unit of the region at which scales begin
    "low",  # addresses of the low bits and fingerprints of split values
    "prints",
    "scales",  # address of the addresses of the scales of states
    "sums",  # address of float64 [variables, sum_count], of rules with statistics
    "sum_count",
    "firsts",  # address of int32 [tiles + 1]: first unit of each tile; read where sums are taken
    "units",  # address of [sum_count, unit_count] scratch
    "unit_count",
    "observed",  # address of float64 [slots, sums] out, in launches that observe
)
word = LAYOUT.reader()
NORM = LAYOUT.positions["norm"]
_address = Tensor.data_ptr
ONE = np.float32(1.0)


def clip_coefficient(dtype: type) -> Any:
    """`coefficient(record, max_norm)`: torch's, at most 1, and NaN where the norm is NaN; 1 without clipping."""
    one, small = dtype(1.0), dtype(1e-6)

    @compiled
    def coefficient(record: Any, max_norm: Any) -> Any:
        if word(record, "clip") == 0:
            return one
        found = max_norm / (dtype(norm_of(record)) + small)
        return one if found > one else found

    return coefficient


@compiled
def norm_of(record: Any) -> Any:
    """The norm, as float64."""
    address = word(record, "norm")
    return read_double(address, 0) if word(record, "norm_is_double") != 0 else np.float64(read_float(address, 0))


@compiled
def is_skipped(record: Any) -> Any:
    if word(record, "skip") != 0 and not abs(norm_of(record)) < np.inf:
        return True
    found_inf = word(record, "found_inf")
    return found_inf != 0 and read_float(found_inf, 0) != 0.0


@compiled
def is_untouched(record: Any, variable: Any) -> Any:
    written = word(record, "written")
    if read_int(word(record, "sources"), 2 * variable) == 0:
        return True
    return written != 0 and read_byte(written, variable) == 0


@compiled
def count_step(record: Any) -> None:
    """Adds one to the steps of every variable that was touched, or to the steps that were skipped."""
    if is_skipped(record):
        skipped = word(record, "skipped")
        if skipped != 0:
            write_int32(skipped, 0, read_int32(skipped, 0) + 1)
        return
    steps, variables = word(record, "steps"), word(record, "variables")
    own, own_count, kept = word(record, "own"), word(record, "own_count"), word(record, "kept")
    for variable in range(word(record, "variable_count")):
        if not is_untouched(record, variable):
            slot = read_int(variables, 3 * variable + 2)
            write_float(steps, slot, read_float(steps, slot) + ONE)
            for i in range(own_count):
                write_float(read_int(own, i), slot, read_float(kept, own_count * variable + i))


@dataclass(frozen=True)
class Measures:
    """Sums of a rule's statistics, and what is needed to take them.

    Attributes:
        sums: float64 [variables, sums].
        firsts: int32 [tiles + 1]: first unit of each tile.
        units: [sums, units] scratch.
    """

    sums: npt.NDArray[np.float64]
    firsts: npt.NDArray[np.int32]
    units: npt.NDArray[Any]


def given(
    tables: Tables,
    sources: Sources,
    rule: Rule,
    values: Stored,
    states: Sequence[Stored],
    inputs: StepInputs,
    written: Tensor | None,
) -> tuple[Any, ...]:
    """All that the record of a launch is made of."""
    streams = [
        (stored.buffer.data_ptr(), stored.buffer.dtype, stored.format, stored.at_random, *map(_address, stored.beside))
        for stored in (values, *states)
    ]
    there = values.places, inputs.grad_scale, inputs.found_inf, inputs.keys, inputs.observed
    return (
        rule,
        *read_of(tables, sources, written),
        streams,
        [None if tensor is None else tensor.data_ptr() for tensor in there],
        inputs.hyper.data_ptr(),
        inputs.hyper.shape,
        inputs.steps.data_ptr(),
        inputs.base,
        inputs.norm.dtype,
        inputs.clip,
        inputs.skip,
        inputs.skipped.data_ptr(),
        inputs.count_skips,
        list(map(_address, inputs.own)),
        inputs.unit,
        inputs.clear,
    )


def prepared(
    code: Any,
    update: Any,
    tables: Tables,
    sources: Sources,
    rule: Rule,
    values: Stored,
    states: Sequence[Stored],
    inputs: StepInputs,
    written: Tensor | None,
    measures: Measures | None,
    scratch: Measures | None,
) -> Prepared:
    """The launch of an updater over all tiles.

    Args:
        measures: Sums that the rule reads.
        scratch: Of the sums that this launch takes.
    """
    dtype = DTYPES[tables.compute_dtype]
    buffers = [state.buffer for state in states]
    addresses, own = (row_of([*map(Tensor.data_ptr, tensors)]) for tensors in (buffers, inputs.own))
    by_units = bool(values.beside) or any(state.beside for state in states)
    scales = row_of([state.beside[0].data_ptr() if state.beside else 0 for state in states] if by_units else [])
    low, prints = values.beside or (None, None)
    kept = np.empty((len(tables.segments), len(own)), dtype=np.float32) if own else None
    size = 2 * sum(buffer.element_size() for buffer in (values.buffer, *buffers)) + 4
    record = LAYOUT.fill(
        tiles=tables.tiles.data_ptr(),
        count=tables.count,
        variables=tables.variables.data_ptr(),
        variable_count=len(tables.segments),
        sources=sources.table.data_ptr(),
        written=address_of(written),
        updater=update.address,
        converter=converter_of(dtype) if sources.dtype is None else 0,
        as_they_are=sources.dtype is not None,
        eraser=eraser_of(sources.dtype) if inputs.clear and sources.viewed and sources.dtype is not None else 0,
        hyper=inputs.hyper.data_ptr(),
        columns=inputs.hyper.shape[1],
        wide=rule.wide,
        steps=inputs.steps.data_ptr(),
        own=address_of_row(own),
        own_count=len(own),
        kept=0 if kept is None else kept.ctypes.data,
        norm=inputs.norm.data_ptr(),
        norm_is_double=inputs.norm.dtype == torch.float64,
        clip=inputs.clip,
        skip=inputs.skip,
        grad_scale=address_of(inputs.grad_scale),
        found_inf=address_of(inputs.found_inf),
        skipped=inputs.skipped.data_ptr() if inputs.count_skips else 0,
        values=values.buffer.data_ptr(),
        places=address_of(values.places),
        value_size=values.buffer.element_size(),
        base=inputs.base,
        frozen=address_of(tables.frozen),
        states=address_of_row(addresses),
        keys=address_of(inputs.keys),
        unit_starts=tables.units.data_ptr() if by_units else 0,
        unit_base=inputs.unit,
        low=address_of(low),
        prints=address_of(prints),
        scales=address_of_row(scales),
        sums=0 if measures is None else measures.sums.ctypes.data,
        sum_count=0 if measures is None else measures.sums.shape[1],
        firsts=0 if scratch is None else scratch.firsts.ctypes.data,
        units=0 if scratch is None else scratch.units.ctypes.data,
        unit_count=0 if scratch is None else scratch.units.shape[1],
        observed=address_of(inputs.observed),
    )
    return Prepared(code, record, size * tables.numel, addresses, own, scales, kept)
