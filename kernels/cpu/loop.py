"""The loop of an updater over the elements of a tile: what a step and the statistics before it have in common.

Where a stream is of a format, elements are gone over unit by unit, each loaded before and stored after; else at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types

from ..rules import Rule
from ..segments import UNIT
from .compile import float_type, native
from .draws import drawer
from .elements import Elements
from .formats import FORMATS
from .gradients import TILE
from .memory import element_load, stack
from .numbers import reader, starter
from .pairs import Pairs
from .squares import unit_sums
from .units import ROW, UNIT_KINDS, element_formats, movers, plain_draws, row_addresses, turning


class Loop:
    """How an updater reads and stores the elements of a tile, and goes over them.

    Args:
        rule: Whose numbers the elements are given.
        kinds: Format of the values, then of each state.
        dtype: Of the arithmetic.
        masked: Whether some elements stay as they are.
        draws: Of each state, which draw rounds it; empty if none is rounded at random.
        starts: What the states begin with, as `Rule.starts`.
        values: Whether these are stored.
        states: Which of these are.
        terms: How many numbers of every element are added up, by units.
        at_random: Whether values, which are bfloat16, are rounded at random.
        source: Format of the gradients; that of the arithmetic if not given.
        measuring: Whether this is about the rule's statistics.
    """

    def __init__(
        self,
        rule: Rule,
        kinds: Sequence[str],
        dtype: type,
        masked: bool,
        draws: tuple[int, ...],
        *,
        starts: Sequence[int],
        values: bool,
        states: range,
        terms: int,
        at_random: bool = False,
        source: str | None = None,
        measuring: bool = False,
    ) -> None:
        number = float_type(dtype)
        self.dtype, self.kinds, self.terms = dtype, kinds, terms
        self.by_units, self.in_rows = any(kind in UNIT_KINDS for kind in kinds), kinds[0] in UNIT_KINDS
        drawn = 1 + max(draws, default=-1)
        value_draw = drawn if at_random else -1  # behind those of states
        self.draws = drawn + at_random
        elements = Elements(element_formats(kinds), number, masked, plain_draws(kinds[1:], draws), terms, value_draw)
        self.elements = elements
        self.draw = drawer(drawn, at_random, turning(kinds[1:], draws))
        form = FORMATS[source or np.dtype(dtype).name]
        self.load_gradient = element_load(form, number, elements.streams, elements.gradient)
        self.load, self.widen = elements.loader(), elements.widener()
        self.store, self.store_terms = elements.storer(values, states), elements.term_storer(terms)
        self.begins = any(start != -1 for start in starts)
        self.keep = elements.keeper(starts)
        self.read_numbers = reader(rule, dtype, measuring)
        self.read_first, self.start_states = starter(rule, starts, dtype)
        self.load_units, self.store_units = movers(kinds, values, states, draws)
        halves = {*kinds, source} == {"bfloat16"} and dtype is np.float32
        self.pairs = Pairs(elements) if halves and values and not (masked or terms) else None

    def over(self, work: Any, by_pairs: Any = None) -> Any:
        """Machine code of the updater.

        Args:
            work: `(first, last, gradients, unscale, clip, values, start, addresses, state_start, frozen, hyper, step,
                is_new, begun, drawn, told)`: of the elements between.
            by_pairs: `(pairs, gradients, unscale, clip, values, start, addresses, state_start, hyper, step, is_new,
                begun, drawn)`: of so many pairs, for which `work` is then not called; where there are `pairs`.
        """
        paired = by_pairs is not None
        by_units, in_rows, terms, dtype = self.by_units, self.in_rows, self.terms, self.dtype
        size, number = np.dtype(dtype).itemsize, float_type(dtype)
        read_addresses, read_numbers, read_first = self.elements.address_reader(), self.read_numbers, self.read_first
        draw, draw_room = self.draw, stack(2 * TILE * max(self.draws, 1))
        load_units, store_units = self.load_units, self.store_units
        addresses_in, rows = row_addresses(self.kinds, self.elements.addresses), stack(ROW * len(self.kinds))
        add_units, term_room = unit_sums(number), stack(max(terms, 1) * TILE * size)

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
            drawn, told = draw_room(), term_room()
            draw(drawn, keys, slot, local, count, step)
            if not by_units:
                done = 0
                if paired:
                    done = count - count % 2
                    by_pairs(
                        done // 2, gradients, unscale, clip, values, start // 2, addresses, state_start // 2, hyper,
                        step, is_new, first, drawn,
                    )  # fmt: skip
                work(
                    done, count, gradients, unscale, clip, values, start, addresses, state_start, frozen, hyper, step,
                    is_new, first, drawn, told,
                )  # fmt: skip
            else:
                memory = rows()
                for lane in range(0, count, UNIT):
                    last = min(lane + UNIT, count)
                    at, state_at, number_of = start + lane, state_start + lane, unit + lane // UNIT
                    places = (at, number_of, state_at, number_of - unit_base, last - lane, lane)
                    load_units(values, low, prints, state_table, scales, places, memory, drawn)
                    work(
                        lane, last, gradients, unscale, clip, memory - 4 * at if in_rows else values, start,
                        addresses_in(addresses, memory - 4 * state_at), state_start, frozen, hyper, step, is_new,
                        first, drawn, told,
                    )  # fmt: skip
                    store_units(values, low, prints, state_table, scales, places, memory, drawn)
            for k in range(terms):
                add_units(told + k * TILE * size, count, units + k * unit_count * size)

        return native(update, types.void(*updater_arguments(number)))


def updater_arguments(number: Any) -> list[Any]:
    """Numba's types of what an updater is called with."""
    word = types.int64
    return [word, word, number, number, *[word] * 6, number, *[word] * 14]
