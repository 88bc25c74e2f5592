"""One optimizer step over all tiles of a region: one launch for any rule, any number of variables and groups.

    g <- gradient / grad_scale  where a GradScaler scaled the loss
    g <- g * clip               clip = min(1, max_norm / (norm + 1e-6)) as torch's; gradients stay as they are
    p, state <- RULE(p, g, state, hyper, step)   hyper: the group's numbers, and what its scalars are in float64

Traffic: values and each state read and written once, the gradient read once: 28 B per float32 AdamW parameter, 1 B more
where elements are masked. A gradient of another dtype is converted tile by tile, in the first-level cache.
Numerics: float32 inside (float64 for float64 regions), every operation rounded on its own, in the order of the rule;
stores round to nearest even, those of some states and values to bfloat16 at random (`triton/stochastic.py`): the bits
of Triton's interpreter, for any number of threads.
Aliasing: values, states and steps in place; padding is not touched. A variable whose source is 0 is untouched. With a
skip, nothing changes but `skipped`. Where `frozen` is not 0, what was read is written back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import types
from torch import Tensor

from ..addresses import Sources
from ..formats import Stored
from ..launches import StepInputs, Tables, draws_of
from ..rules import OBSERVED, Rule, observe
from ..segments import UNIT
from .compile import DTYPES, compiled, float_type, native, twin
from .elements import Elements
from .formats import FORMATS
from .gradients import TILE, converter_of, tile_source
from .log import turn_draws
from .memory import (
    caller,
    element_load,
    fetch_add,
    read_byte,
    read_double,
    read_float,
    read_int,
    read_int32,
    stack,
    write_double,
    write_float,
    write_int32,
)
from .numbers import reader, starter
from .philox import write_draws
from .prepared import Launcher, Prepared
from .record import DONE, NEXT, RecordLayout, address_of, address_of_row, row_of
from .squares import unit_sums, variable_sum
from .threads import chunk_of, threads_for, wait
from .units import ROW, UNIT_KINDS, element_formats, kind_of, movers, plain_draws, resting, row_addresses, turning

LAYOUT = RecordLayout(
    "tiles",  # address of [tiles, 5] int64
    "count",  # of tiles
    "chunk",  # tiles that a thread takes at a time
    "variables",  # address of [variables, 3] int64: first tile, number of tiles, slot
    "variable_count",
    "sources",  # address of [variables, 2] int64: address (0: untouched) and dtype code
    "written",  # address of uint8 [variables], 0 where a view holds no gradient; 0 where all sources count
    "updater",  # address of the function for the elements of a tile
    "converter",  # address of the function for gradients of other dtypes
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
_address = Tensor.data_ptr
ONE = np.float32(1.0)
VALUE_DRAWS, STATE_DRAWS = 1, 2  # third word of the counter, as in `triton/stochastic.py`


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


@functools.cache
def updater(
    rule: Rule,
    value: str,
    states: tuple[str, ...],
    dtype: type,
    masked: bool,
    draws: tuple[int, ...] = (),
    observes: bool = False,
    at_random: bool = False,
) -> Any:
    """Machine code of the loop over the elements of a tile, for one rule over streams of these formats.

    What does not change from one element to the next, LLVM moves before the loop: bias corrections, step sizes.

    Args:
        observes: Whether it takes the sums of `rules/observe.py`.
        at_random: Whether values, which are bfloat16, are rounded at random.
    """
    kinds_of, terms = (value, *states), len(OBSERVED) if observes else 0
    kinds = 1 + max(draws, default=-1)
    value_draw = kinds if at_random else -1  # behind those of states
    drawn_here = plain_draws(states, draws)
    elements = Elements(element_formats(kinds_of), float_type(dtype), masked, drawn_here, terms, value_draw)
    draw, room = drawer(kinds, at_random, turning(states, draws)), stack(2 * TILE * max(kinds + at_random, 1))
    function, number = twin(rule.function, dtype), float_type(dtype)
    begins = any(start != -1 for start in rule.step_starts)
    load_gradient = element_load(FORMATS[np.dtype(dtype).name], number, elements.streams, elements.gradient)
    load, widen, store = elements.loader(), elements.widener(), elements.storer(states=range(rule.stored))
    read_addresses, read_numbers = elements.address_reader(), reader(rule, dtype)
    read_first, start_states = starter(rule, rule.step_starts, dtype)
    keep = elements.keeper(rule.step_starts)
    by_units = any(kind in UNIT_KINDS for kind in kinds_of)
    load_units, store_units = movers(kinds_of, True, range(rule.stored), draws)
    rests = resting(masked)
    in_rows, rows, split = row_addresses(kinds_of, elements.addresses), stack(ROW * len(kinds_of)), value in UNIT_KINDS

    size, place = np.dtype(dtype).itemsize, rule.momentum
    term_room, add_units, tell = stack(max(terms, 1) * TILE * size), unit_sums(number), twin(observe, dtype)
    store_terms, as_stored, take = elements.term_storer(terms), elements.value_storer(), elements.state_taker(place)

    @compiled
    def tell_units(told: Any, count: Any, units: Any, unit_count: Any) -> None:
        for k in range(terms):
            add_units(told + k * TILE * size, count, units + k * unit_count * size)

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
        for i in range(first_lane, last):
            plain = load_gradient(gradients, i) * unscale
            g = plain * clip
            stored = load(values, start + i, addresses, state_start + i)
            p, state = widen(stored)
            if begins:
                state = start_states(is_new, p, state, first)
                if masked:
                    stored = keep(is_new, state, stored)
            kept = masked and read_byte(frozen, start + i) != 0
            old, momentum = p, take(p, state)
            p, state = function(p, g, state, hyper, step)
            store(values, start + i, addresses, state_start + i, p, state, stored, kept, drawn, i)
            if observes:
                store_terms(told, i, tell(old, p, as_stored(p, drawn, i), plain, momentum), kept)

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
        addresses = read_addresses(state_table)
        is_new, first = fresh != 0, read_first(row)
        drawn = room()
        draw(drawn, keys, slot, local, count, step)
        told = term_room()
        if not by_units:
            work(
                0, count, gradients, unscale, clip, values, start, addresses, state_start, frozen, hyper, step, is_new,
                first, drawn, told,
            )  # fmt: skip
            tell_units(told, count, units, unit_count)
            return
        memory = rows()
        for lane in range(0, count, UNIT):
            last = min(lane + UNIT, count)
            at, state_at, number = start + lane, state_start + lane, unit + lane // UNIT
            rest = rests(frozen, at, last - lane, is_new)
            places = (at, number, state_at, number - unit_base, last - lane, lane, rest)
            load_units(values, low, prints, state_table, scales, places, memory, drawn)
            work(
                lane, last, gradients, unscale, clip, memory - 4 * at if split else values, start,
                in_rows(addresses, memory - 4 * state_at), state_start, frozen, hyper, step, is_new, first, drawn,
                told,
            )  # fmt: skip
            store_units(values, low, prints, state_table, scales, places, memory, drawn)
        tell_units(told, count, units, unit_count)

    return native(update, types.void(*updater_arguments(number)))


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


def updater_arguments(number: Any) -> list[Any]:
    word = types.int64
    return [word, word, number, number, *[word] * 6, number, *[word] * 14]


@functools.cache
def drawer(kinds: int, values: bool = False, turned: int = 0) -> Any:
    """`draw(target, keys, slot, local, count, step)`: 16 bits for each element of a tile, for each kind of draw.

    Args:
        kinds: Of states.
        values: Whether there is one more, of values.
        turned: Bits of the kinds whose draws a step turns on, see `turning`.
    """
    if kinds == 0 and not values:

        @compiled
        def draw_nothing(target: Any, keys: Any, slot: Any, local: Any, count: Any, step: Any) -> None:
            """Most rules draw nothing, and compile in two thirds of the time without the generator."""

        return draw_nothing

    @compiled
    def draw(target: Any, keys: Any, slot: Any, local: Any, count: Any, step: Any) -> None:
        seed, key, number = read_int(keys, 0), read_int(keys, 1 + slot), np.int64(step)
        for row in range(kinds + values):
            purpose, which = (STATE_DRAWS, row) if row < kinds else (VALUE_DRAWS, 0)
            for block in range((count + 15) // 16):
                place = target + 2 * TILE * row + 32 * block
                of_step = number if turned >> row & 1 == 0 else np.int64(0)
                write_draws(place, seed, key, local // 16 + block, of_step, np.int64(purpose), np.int64(which))
            if turned >> row & 1:
                turn_draws(target + 2 * TILE * row, count, number)

    return draw


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
        wide = word(record, "wide") != 0
        width = 8 if wide else size
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

    def run(record: Any, leader: Any) -> Any:
        # The first look is at the counter alone: who comes too late may find the rest gone.
        count, chunk, memory = word(record, "count"), word(record, "chunk"), room()
        first = fetch_add(record + 8 * NEXT, chunk)
        if first < count:
            skipped = is_skipped(record)
            while first < count:
                last = min(first + chunk, count)
                if not skipped and measuring:
                    tiles_between(record, first, last, memory)
                elif not skipped:
                    # From the end: the gradients that the norm, or the sums, read last are still in the cache.
                    tiles_between(record, count - last, count - first, memory)
                fetch_add(record + 8 * DONE, last - first)
                first = fetch_add(record + 8 * NEXT, chunk)
        if leader == 0 or not wait(record, count):
            return 0
        finish(record)
        return 1

    return native(run, types.int64(types.int64, types.int64))


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
) -> None:
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
        update = updater(rule, kind_of(values), kinds, dtype, tables.frozen is not None, draws, observes, at_random)
        code = kernel(dtype, observer(dtype), True) if observes else kernel(dtype)
        return prepared(code, update, tables, sources, rule, values, states, inputs, written, measures, observed)

    launcher.run(given(tables, sources, rule, values, states, inputs, written), prepare)


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
    return (
        rule,
        torch.get_num_threads(),
        sources.table.data_ptr(),
        sources.dtype,
        written is None,
        address_of(tables.frozen),
        streams,
        address_of(values.places),
        inputs.hyper.data_ptr(),
        inputs.hyper.shape,
        inputs.steps.data_ptr(),
        inputs.base,
        inputs.norm.data_ptr(),
        inputs.norm.dtype,
        inputs.clip,
        inputs.skip,
        inputs.skipped.data_ptr(),
        inputs.count_skips,
        address_of(inputs.grad_scale),
        address_of(inputs.found_inf),
        list(map(_address, inputs.own)),
        address_of(inputs.keys),
        inputs.unit,
        address_of(inputs.observed),
    )


def stored_draws(rule: Rule, states: Sequence[Stored], inputs: StepInputs, stored: range) -> tuple[int, ...]:
    """See `draws_of`, of the states that are stored; empty where none of them is rounded at random."""
    draws = tuple(draw if i in stored else -1 for i, draw in enumerate(draws_of(rule, states, inputs)))
    return draws if max(draws, default=-1) >= 0 else ()


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
    threads = threads_for(size * tables.numel)
    record = LAYOUT.fill(
        tiles=tables.tiles.data_ptr(),
        count=tables.count,
        chunk=chunk_of(tables.count, threads),
        variables=tables.variables.data_ptr(),
        variable_count=len(tables.segments),
        sources=sources.table.data_ptr(),
        written=address_of(written),
        updater=update.address,
        converter=0 if sources.dtype == tables.compute_dtype else converter_of(dtype),
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
    return Prepared(code, record, threads, addresses, own, scales, kept)
