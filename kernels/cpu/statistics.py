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
from torch import Tensor

from ..addresses import Sources
from ..formats import Stored
from ..launches import Again, StepInputs, Tables
from ..rules import Rule
from .compile import DTYPES, compiled, twin, wide_vectors
from .draws import stored_draws
from .gradients import read_as
from .loop import Loop
from .memory import read_byte, read_int, read_int32, write_double
from .prepared import Launcher, Prepared
from .squares import variable_sum
from .step import kernel
from .step_record import NORM, Measures, given, is_skipped, is_untouched, prepared, word
from .units import kind_of


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
    sums = rule.statistics
    assert sums is not None
    moves = sums.moves
    loop = Loop(
        rule,
        (value, *states),
        dtype,
        masked,
        draws,
        starts=rule.starts,
        values=False,
        states=range(rule.beside, len(states) if moves else 0),
        terms=len(sums.names),
        source=source,
        measuring=True,
    )
    function = twin(sums.function, dtype)
    begins, load_gradient, load, widen, store = loop.begins, loop.load_gradient, loop.load, loop.widen, loop.store
    start_states, keep, store_terms = loop.start_states, loop.keep, loop.store_terms

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
        told: Any,
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
            store_terms(told, i, terms, kept)

    return loop.over(work)


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
) -> Again:
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
    made = launcher.run(given(tables, sources, rule, values, states, inputs, written), prepare, moved)
    return lambda norm: made.run([(NORM, norm.data_ptr())])
