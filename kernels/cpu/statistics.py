"""Sums over every variable that its step depends on, in one launch before it.

    sums[variable] = sum over the elements that train of STATISTICS(p, g, state, hyper, step)

with the gradient as the step sees it: unscaled and clipped. With `moves`, it also returns the states, which are stored.

Traffic: what the terms are made of, read once, each state written as well with `moves`; terms lie on the stack.
Numerics: terms in float32 (float64 for float64 regions), added in the order of `kernels/triton/statistics.py`: the same
bits.
Aliasing: values and gradients are only read. Untouched variables and skipped steps as in `step.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from torch import Tensor

from ..addresses import Sources
from ..formats import Stored
from ..launches import StepInputs, Tables
from ..rules import Rule
from ..segments import UNIT
from .compile import DTYPES, compiled, float_type, native, twin, wide_vectors
from .draws import drawer, stored_draws
from .elements import Elements
from .formats import FORMATS
from .gradients import TILE, read_as
from .memory import element_load, read_byte, read_int, read_int32, stack, write_double
from .numbers import reader, starter
from .prepared import Launcher, Prepared
from .squares import unit_sums, variable_sum
from .step import kernel
from .step_record import NORM, Measures, given, is_skipped, is_untouched, prepared, word
from .units import ROW, UNIT_KINDS, element_formats, kind_of, movers, plain_draws, row_addresses, turning
from .update import updater_arguments


@functools.cache
def updater(
    rule: Rule,
    value: str,
    states: tuple[str, ...],
    dtype: type,
    masked: bool,
    draws: tuple[int, ...] = (),
    source: str | None = None,
) -> Any:
    """Machine code of the loop over the elements of a tile, and of the sums of its units."""
    sums, number = rule.statistics, float_type(dtype)
    assert sums is not None
    count_of, size, moves = len(sums.names), np.dtype(dtype).itemsize, sums.moves
    kinds_of = (value, *states)
    elements = Elements(element_formats(kinds_of), number, masked, plain_draws(states, draws), count_of)
    kinds = 1 + max(draws, default=-1)
    draw, draw_room = drawer(kinds, False, turning(states, draws)), stack(2 * TILE * max(kinds, 1))
    function, begins = twin(sums.function, dtype), any(start != -1 for start in rule.starts)
    load_gradient = element_load(FORMATS[source or np.dtype(dtype).name], number, elements.streams, elements.gradient)
    load, widen, store = (
        elements.loader(),
        elements.widener(),
        elements.storer(False, range(rule.beside, len(rule.states))),
    )
    store_terms, add_units, room = elements.term_storer(count_of), unit_sums(number), stack(count_of * TILE * size)
    read_addresses, read_numbers = elements.address_reader(), reader(rule, dtype, measuring=True)
    read_first, start_states = starter(rule, rule.starts, dtype)
    keep = elements.keeper(rule.starts)
    by_units = any(kind in UNIT_KINDS for kind in kinds_of)
    load_units, store_units = movers(kinds_of, False, range(rule.beside, len(states) if moves else 0), draws)
    in_rows, rows, split = row_addresses(kinds_of, elements.addresses), stack(ROW * len(kinds_of)), value in UNIT_KINDS

    @compiled
    def work(
        first_lane: Any,
        last: Any,
        gradients: Any,
        unscale: Any,
        clip: Any,
        values: Any,
        start: Any,
        addresses: Any,
        state_start: Any,
        frozen: Any,
        hyper: Any,
        step: Any,
        is_new: Any,
        first: Any,
        drawn: Any,
        memory: Any,
    ) -> None:
        wide_vectors()
        for i in range(first_lane, last):
            g = load_gradient(gradients, i) * unscale * clip
            stored = load(values, start + i, addresses, state_start + i)
            p, state = widen(stored)
            if begins:
                state = start_states(is_new, p, state, first)
                if masked:
                    stored = keep(is_new, state, stored)
            kept = masked and read_byte(frozen, start + i) != 0
            if moves:
                terms, state = function(p, g, state, hyper, step)
                store(values, start + i, addresses, state_start + i, p, state, stored, kept, drawn, i)
            else:
                terms = function(p, g, state, hyper, step)
            store_terms(memory, i, terms, kept)

    def update(
        gradients: Any,
        count: Any,
        unscale: Any,
        clip: Any,
        values: Any,
        start: Any,
        state_table: Any,
        state_start: Any,
        frozen: Any,
        row: Any,
        step: Any,
        fresh: Any,
        own_table: Any,
        slot: Any,
        kept_scalars: Any,
        sums: Any,
        units: Any,
        unit_count: Any,
        keys: Any,
        local: Any,
        low: Any,
        prints: Any,
        scales: Any,
        unit: Any,
        unit_base: Any,
    ) -> None:
        hyper = read_numbers(row, step, fresh, own_table, slot, kept_scalars, sums)
        addresses, memory = read_addresses(state_table), room()
        is_new, first = fresh != 0, read_first(row)
        drawn = draw_room()
        draw(drawn, keys, slot, local, count, step)
        if not by_units:
            work(
                0, count, gradients, unscale, clip, values, start, addresses, state_start, frozen, hyper, step, is_new,
                first, drawn, memory,
            )  # fmt: skip
        else:
            buffer = rows()
            for lane in range(0, count, UNIT):
                last = min(lane + UNIT, count)
                at, state_at, number_of = start + lane, state_start + lane, unit + lane // UNIT
                places = (at, number_of, state_at, number_of - unit_base, last - lane, lane)
                load_units(values, low, prints, state_table, scales, places, buffer, drawn)
                work(
                    lane, last, gradients, unscale, clip, buffer - 4 * at if split else values, start,
                    in_rows(addresses, buffer - 4 * state_at), state_start, frozen, hyper, step, is_new, first, drawn,
                    memory,
                )  # fmt: skip
                store_units(values, low, prints, state_table, scales, places, buffer, drawn)
        for k in range(count_of):
            add_units(memory + k * TILE * size, count, units + k * unit_count * size)

    return native(update, types.void(*updater_arguments(number)))


@functools.cache
def finisher(dtype: type) -> Any:
    """`(record)`: adds up the units of every variable that was touched."""
    total, size = variable_sum(dtype), np.dtype(dtype).itemsize

    @compiled
    def add_up(record: Any) -> None:
        if is_skipped(record):
            return
        variables, firsts, units = word(record, "variables"), word(record, "firsts"), word(record, "units")
        sums, sum_count, unit_count = word(record, "sums"), word(record, "sum_count"), word(record, "unit_count")
        for variable in range(word(record, "variable_count")):
            if not is_untouched(record, variable):
                tile = read_int(variables, 3 * variable)
                first = read_int32(firsts, tile)
                last = read_int32(firsts, tile + read_int(variables, 3 * variable + 1))
                for k in range(sum_count):
                    begin = units + size * (k * unit_count + first)
                    write_double(sums, sum_count * variable + k, total(begin, last - first))

    return add_up


def launch(
    launcher: Launcher,
    tables: Tables,
    sources: Sources,
    rule: Rule,
    values: Stored,
    states: Sequence[Stored],
    inputs: StepInputs,
    written: Tensor | None,
    measures: Measures,
) -> None:
    """See `Launches.statistics`; `written` is uint8 [variables], of viewed sources."""

    def prepare() -> Prepared:
        dtype = DTYPES[tables.compute_dtype]
        moves = rule.statistics is not None and rule.statistics.moves
        draws = stored_draws(rule, states, inputs, range(rule.beside, len(states) if moves else 0))
        kinds, masked = tuple(map(kind_of, states)), tables.frozen is not None
        update = updater(rule, kind_of(values), kinds, dtype, masked, draws, read_as(sources, tables))
        code = kernel(dtype, finisher(dtype), True)
        return prepared(code, update, tables, sources, rule, values, states, inputs, written, measures, measures)

    moved = [(NORM, inputs.norm.data_ptr())]
    launcher.run(given(tables, sources, rule, values, states, inputs, written), prepare, moved)
