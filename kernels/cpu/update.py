"""The loop of a step over the elements of a tile: one for each rule, over streams of some formats."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import types

from ..rules import OBSERVED, Rule, observe
from ..segments import UNIT
from .compile import compiled, float_type, native, twin, wide_vectors
from .draws import drawer
from .elements import Elements
from .formats import FORMATS
from .gradients import TILE
from .memory import element_load, read_byte, stack
from .numbers import reader, starter
from .squares import unit_sums
from .units import ROW, UNIT_KINDS, element_formats, movers, plain_draws, row_addresses, turning


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
    source: str | None = None,
) -> Any:
    """Machine code of the loop over the elements of a tile, for one rule over streams of these formats.

    What does not change from one element to the next, LLVM moves before the loop: bias corrections, step sizes.

    Args:
        observes: Whether it takes the sums of `rules/observe.py`.
        at_random: Whether values, which are bfloat16, are rounded at random.
        source: Format of the gradients; that of the arithmetic if not given.
    """
    kinds_of, terms = (value, *states), len(OBSERVED) if observes else 0
    kinds = 1 + max(draws, default=-1)
    value_draw = kinds if at_random else -1  # behind those of states
    drawn_here = plain_draws(states, draws)
    elements = Elements(element_formats(kinds_of), float_type(dtype), masked, drawn_here, terms, value_draw)
    draw, room = drawer(kinds, at_random, turning(states, draws)), stack(2 * TILE * max(kinds + at_random, 1))
    function, number = twin(rule.function, dtype), float_type(dtype)
    begins = any(start != -1 for start in rule.step_starts)
    load_gradient = element_load(FORMATS[source or np.dtype(dtype).name], number, elements.streams, elements.gradient)
    load, widen, store = elements.loader(), elements.widener(), elements.storer(states=range(rule.stored))
    read_addresses, read_numbers = elements.address_reader(), reader(rule, dtype)
    read_first, start_states = starter(rule, rule.step_starts, dtype)
    keep = elements.keeper(rule.step_starts)
    by_units = any(kind in UNIT_KINDS for kind in kinds_of)
    load_units, store_units = movers(kinds_of, True, range(rule.stored), draws)
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
        wide_vectors()
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
            places = (at, number, state_at, number - unit_base, last - lane, lane)
            load_units(values, low, prints, state_table, scales, places, memory, drawn)
            work(
                lane, last, gradients, unscale, clip, memory - 4 * at if split else values, start,
                in_rows(addresses, memory - 4 * state_at), state_start, frozen, hyper, step, is_new, first, drawn,
                told,
            )  # fmt: skip
            store_units(values, low, prints, state_table, scales, places, memory, drawn)
        tell_units(told, count, units, unit_count)

    return native(update, types.void(*updater_arguments(number)))


def updater_arguments(number: Any) -> list[Any]:
    word = types.int64
    return [word, word, number, number, *[word] * 6, number, *[word] * 14]
