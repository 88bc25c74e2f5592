"""One optimizer step over all tiles of a region: one launch for any rule, any number of variables and groups.

    g <- gradient / grad_scale  where a GradScaler scaled the loss
    g <- g * clip               clip = min(1, max_norm / (norm + 1e-6)) as torch's; gradients stay as they are
    p, state <- RULE(p, g, state, hyper, step)   hyper: the group's numbers, and what its scalars are in float64

Traffic: values and each state read and written once, the gradient read once: 28 B per float32 AdamW parameter, 1 B more
where elements are masked, 4 B more where gradients are cleared: tile by tile, while they are in the first-level cache.
Gradients of one dtype are loaded as they are; of several, those of other dtypes than the arithmetic are converted tile
by tile, in the first-level cache.
Numerics: float32 inside (float64 for float64 regions), every operation rounded on its own, in the order of the rule;
stores round to nearest even, those of some states and values to bfloat16 at random (`triton/stochastic.py`): the bits
of Triton's interpreter, for any number of threads.
Aliasing: values, states and steps in place; padding is not touched. A variable whose source is 0 is untouched. With a
skip, nothing changes but `skipped`, and gradients that are to be cleared. Where `frozen` is not 0, what was read is
written back.
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
from ..launches import Again, StepInputs, Tables
from ..rules import OBSERVED, Rule
from ..segments import UNIT
from .compile import DTYPES, compiled, float_type, native
from .draws import stored_draws
from .gradients import ERASER_ARGUMENTS, TILE, read_as, size_of, tile_source
from .loop import updater_arguments
from .memory import caller, fetch_add, read_double, read_float, read_int, read_int32, stack, write_double
from .prepared import Launcher, Prepared
from .record import DONE, NEXT
from .squares import variable_sum
from .step_record import (
    NORM,
    ONE,
    Measures,
    clip_coefficient,
    count_step,
    given,
    is_skipped,
    is_untouched,
    prepared,
    word,
)
from .threads import wait
from .units import kind_of
from .update import updater


@functools.cache
def observer(dtype: type) -> Any:
    """`(record)`: adds up the units of every variable that was stepped, and counts the steps."""
    total, size, count = variable_sum(dtype), np.dtype(dtype).itemsize, len(OBSERVED)

    @compiled
    def observe_and_count(record: Any) -> None:
        if not is_skipped(record):
            variables, firsts, units = word(record, "variables"), word(record, "firsts"), word(record, "units")
            observed, unit_count = word(record, "observed"), word(record, "unit_count")
            for variable in range(word(record, "variable_count")):
                if not is_untouched(record, variable):
                    tile, slot = read_int(variables, 3 * variable), read_int(variables, 3 * variable + 2)
                    first = read_int32(firsts, tile)
                    last = read_int32(firsts, tile + read_int(variables, 3 * variable + 1))
                    for k in range(count):
                        begin = units + size * (k * unit_count + first)
                        write_double(observed, count * slot + k, total(begin, last - first))
        count_step(record)

    return observe_and_count


@functools.cache
def kernel(dtype: type, finish: Any = count_step, measuring: bool = False) -> Any:
    """Machine code of `(record, leader) -> finished`, for every rule.

    Args:
        finish: `(record)`: what the leader does when all tiles are done.
        measuring: Whether the updater takes sums, and wants to know the units of its tile.

    Threads call it on one record and take tiles until none is left. The leader then waits a moment for the others,
    and counts the steps if all tiles are done; if not, it returns 0, and is called once more when they are.
    """
    source, coefficient, update = (
        tile_source(dtype),
        clip_coefficient(dtype),
        caller(updater_arguments(float_type(dtype))),
    )
    erase = caller(ERASER_ARGUMENTS)
    read = read_double if dtype is np.float64 else read_float
    size, one = np.dtype(dtype).itemsize, dtype(1.0)
    room = stack(TILE * size)

    @compiled
    def tiles_between(record: Any, first: Any, last: Any, memory: Any) -> None:
        variables, sources, steps = word(record, "variables"), word(record, "sources"), word(record, "steps")
        hyper, columns, converter = word(record, "hyper"), word(record, "columns"), word(record, "converter")
        values, base, frozen = word(record, "values"), word(record, "base"), word(record, "frozen")
        states, updater, grad_scale = word(record, "states"), word(record, "updater"), word(record, "grad_scale")
        own, own_count, kept = word(record, "own"), word(record, "own_count"), word(record, "kept")
        keys, unit_starts, unit_base = word(record, "keys"), word(record, "unit_starts"), word(record, "unit_base")
        low, prints, scales = word(record, "low"), word(record, "prints"), word(record, "scales")
        sums, sum_count, firsts = word(record, "sums"), word(record, "sum_count"), word(record, "firsts")
        units, unit_count = word(record, "units"), word(record, "unit_count")
        places, value_size = word(record, "places"), word(record, "value_size")
        wide, eraser = word(record, "wide") != 0, word(record, "eraser")
        width, as_they_are = 8 if wide else size, word(record, "as_they_are") != 0
        unscale = one
        if grad_scale != 0:
            unscale = one / dtype(read_float(grad_scale, 0))
        for tile in range(first, last):
            row = word(record, "tiles") + 40 * tile
            variable = read_int(row, 3)
            if is_untouched(record, variable):
                continue
            start, local, length = read_int(row, 0), read_int(row, 1), read_int(row, 2)
            address, code = read_int(sources, 2 * variable), read_int(sources, 2 * variable + 1)
            group = hyper + read_int(row, 4) * columns * width
            slot = read_int(variables, 3 * variable + 2)
            step = dtype(read_float(steps, slot) + ONE)
            # A count of -0.0 has steps to come as well, but its state was set.
            fresh = 1 if read_int32(steps, slot) == 0 else 0
            unit = 0 if unit_starts == 0 else read_int(unit_starts, variable) + local // UNIT
            held = values
            if places != 0:
                held = read_int(places, variable) - (start - local) * value_size
            if as_they_are:
                gradients = address + local * size_of(code)
            else:
                gradients = source(address, code, local, length, one, 0, memory, converter)
            clip = coefficient(record, dtype(read_double(group, 0)) if wide else read(group, 0))
            update(
                updater,
                gradients,
                length,
                unscale,
                clip,
                held,
                start,
                states,
                start - base,
                frozen,
                group + width,
                step,
                fresh,
                own,
                slot,
                kept + 4 * own_count * variable,
                sums + 8 * sum_count * variable,
                units + (size * read_int32(firsts, tile) if measuring else 0),
                unit_count,
                keys,
                local,
                low,
                prints,
                scales,
                unit,
                unit_base,
            )
            if eraser != 0:
                erase(eraser, address + local * size_of(code), length)

    @compiled
    def erase_between(record: Any, first: Any, last: Any) -> None:
        sources, eraser = word(record, "sources"), word(record, "eraser")
        for tile in range(first, last):
            row = word(record, "tiles") + 40 * tile
            variable = read_int(row, 3)
            if not is_untouched(record, variable):
                address, code = read_int(sources, 2 * variable), read_int(sources, 2 * variable + 1)
                erase(eraser, address + read_int(row, 1) * size_of(code), read_int(row, 2))

    def run(record: Any, leader: Any) -> Any:
        # The first look is at the counter alone: who comes too late may find the rest gone.
        count, chunk, memory = word(record, "count"), word(record, "chunk"), room()
        first = fetch_add(record + 8 * NEXT, chunk)
        if first < count:
            skipped, erases = is_skipped(record), word(record, "eraser") != 0
            while first < count:
                last = min(first + chunk, count)
                if not skipped and measuring:
                    tiles_between(record, first, last, memory)
                elif not skipped:
                    # From the end: the gradients that the norm, or the sums, read last are still in the cache.
                    tiles_between(record, count - last, count - first, memory)
                elif erases:
                    erase_between(record, first, last)
                fetch_add(record + 8 * DONE, last - first)
                first = fetch_add(record + 8 * NEXT, chunk)
        if leader == 0 or not wait(record, count):
            return 0
        finish(record)
        return 1

    return native(run, types.int64(types.int64, types.int64))


def launch(
    launcher: Launcher,
    tables: Tables,
    sources: Sources,
    rule: Rule,
    values: Stored,
    states: Sequence[Stored],
    inputs: StepInputs,
    written: Tensor | None,
    measures: Measures | None,
    observed: Measures | None,
) -> Again:
    """See `Launches.step`; `written` is uint8 [variables], of viewed sources, `measures` of rules with statistics.

    Args:
        observed: Scratch of what `inputs.observed` asks for.
    """

    def prepare() -> Prepared:
        dtype = DTYPES[tables.compute_dtype]
        draws = stored_draws(rule, states, inputs, range(rule.stored))
        observes = observed is not None
        kinds = tuple(map(kind_of, states))
        at_random = values.at_random and inputs.keys is not None
        masked, read = tables.frozen is not None, read_as(sources, tables)
        update = updater(rule, kind_of(values), kinds, dtype, masked, draws, observes, at_random, read)
        code = kernel(dtype, observer(dtype), True) if observes else kernel(dtype)
        return prepared(code, update, tables, sources, rule, values, states, inputs, written, measures, observed)

    moved = [(NORM, inputs.norm.data_ptr())]
    made = launcher.run(given(tables, sources, rule, values, states, inputs, written), prepare, moved)
    return lambda norm: made.run([(NORM, norm.data_ptr())])
