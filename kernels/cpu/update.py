"""The loop of a step over the elements of a tile: one for each rule, over streams of some formats."""

from __future__ import annotations

import functools
from typing import Any

from ..rules import OBSERVED, Rule, observe
from .compile import compiled, twin, wide_vectors
from .loop import Loop
from .memory import read_byte


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
    loop = Loop(
        rule,
        (value, *states),
        dtype,
        masked,
        draws,
        starts=rule.step_starts,
        values=True,
        states=range(rule.stored),
        terms=len(OBSERVED) if observes else 0,
        at_random=at_random,
        source=source,
    )
    function, tell = twin(rule.function, dtype), twin(observe, dtype)
    begins, load_gradient, load, widen, store = loop.begins, loop.load_gradient, loop.load, loop.widen, loop.store
    start_states, keep, store_terms = loop.start_states, loop.keep, loop.store_terms
    as_stored, take = loop.elements.value_storer(), loop.elements.state_taker(rule.momentum)

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

    if loop.pairs is None:
        return loop.over(work)
    load_gradients, load_pair, store_pair = (
        loop.pairs.gradient_loader(),
        loop.pairs.loader(),
        loop.pairs.storer(range(rule.stored)),
    )

    @compiled
    def by_pairs(
        pairs: Any,
        gradients: Any,
        unscale: Any,
        clip: Any,
        values: Any,
        start: Any,
        addresses: Any,
        state_start: Any,
        hyper: Any,
        step: Any,
        is_new: Any,
        first: Any,
        drawn: Any,
    ) -> None:
        wide_vectors()
        for i in range(pairs):
            g, other_g = load_gradients(gradients, i)
            p, state, other_p, other_state = load_pair(values, start + i, addresses, state_start + i)
            if begins:
                state = start_states(is_new, p, state, first)
                other_state = start_states(is_new, other_p, other_state, first)
            p, state = function(p, g * unscale * clip, state, hyper, step)
            other_p, other_state = function(other_p, other_g * unscale * clip, other_state, hyper, step)
            store_pair(
                values, start + i, addresses, state_start + i, p, state, other_p, other_state, drawn, i
            )  # fmt: skip

    return loop.over(work, by_pairs)
