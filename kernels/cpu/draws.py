"""Random bits of a tile, by which some states and values are rounded: `triton/stochastic.py` says which."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..formats import Stored
from ..launches import StepInputs, draws_of
from ..rules import Rule
from .compile import compiled
from .gradients import TILE
from .log import turn_draws
from .memory import read_int
from .philox import SHORT_BLOCK, short_block_writer, write_short_blocks

PER_BLOCK = SHORT_BLOCK // 2  # draws
VALUE_DRAWS, STATE_DRAWS = 0x100, 0x200  # last word of the counter, as in `triton/stochastic.py`


@functools.cache
def drawer(kinds: int, values: bool = False, turned: int = 0) -> Any:
    """`draw(target, keys, slot, local, count, step)`: 16 bits for each element of a tile, for each kind of draw.

    Args:
        kinds: Of states.
        values: Whether there is one more, of values.
        turned: Bits of the kinds whose draws a step turns on, see `turning` of `units.py`.
    """
    if kinds == 0 and not values:

        @compiled
        def draw_nothing(target: Any, keys: Any, slot: Any, local: Any, count: Any, step: Any) -> None:
            """Of most rules."""

        return draw_nothing

    writer = short_block_writer()

    @compiled
    def draw(target: Any, keys: Any, slot: Any, local: Any, count: Any, step: Any) -> None:
        key, number = read_int(keys, 0) ^ read_int(keys, 1 + slot), np.int64(step)
        first, blocks = local // PER_BLOCK, (count + PER_BLOCK - 1) // PER_BLOCK
        for row in range(kinds + values):
            purpose = STATE_DRAWS + row if row < kinds else VALUE_DRAWS
            of_step = number if turned >> row & 1 == 0 else np.int64(0)
            write_short_blocks(writer(), target + 2 * TILE * row, blocks, key, first, of_step, purpose)
            if turned >> row & 1:
                turn_draws(target + 2 * TILE * row, count, number)

    return draw


def stored_draws(rule: Rule, states: Sequence[Stored], inputs: StepInputs, stored: range) -> tuple[int, ...]:
    """See `draws_of`, of the states that are stored; empty where none of them is rounded at random."""
    draws = tuple(draw if i in stored else -1 for i, draw in enumerate(draws_of(rule, states, inputs)))
    return draws if max(draws, default=-1) >= 0 else ()
