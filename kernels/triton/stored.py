"""Tiles of streams of a format, as `kernels/formats.py` has them: from codes to float32 numbers, and back.

Traffic: the codes and, for each unit of 128 elements, the scale. Numerics: as compiled for the CPU, bit for bit.
A tile holds whole units, for a variable's tiles begin at multiples of 256 of its elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .. import formats
from ..segments import UNIT as ELEMENTS
from .compile import twin
from .log import load_pairs, log_codes, log_grid, log_numbers, store_pairs
from .stochastic import STATES, VALUES, draw_bits, round_at_random, turning_bits
from .tiles import round_to

UNIT = tl.constexpr(ELEMENTS)
PLAIN, ROOT, ROOT_SQUARES, LOG = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
CODES = {None: 0, formats.ROOT8: 1, formats.ROOT8_SQUARES: 2, formats.LOG4: 3}
"""How a kernel is told of a format."""

root_code, root_number = twin(formats.root_code), twin(formats.root_number)
root_code_of_square, root_square = twin(formats.root_code_of_square), twin(formats.root_square)


@triton.jit
def unit_of(units_ptr, variable, local, SPLIT: tl.constexpr, FORMATS: tl.constexpr):
    """The unit of the region at which a tile begins; one of its variable where nothing is stored by units."""
    unit = local // UNIT
    by_units = SPLIT != 0
    for i in tl.static_range(len(FORMATS)):
        by_units = by_units or FORMATS[i] != PLAIN
    if by_units:
        unit += tl.load(units_ptr + variable)
    return unit


@triton.jit
def load_states(states_ptr, first, lane, mask, length, FORMATS: tl.constexpr, BLOCK: tl.constexpr):
    """Of each state what is stored of a tile, which begins at element `first` of their streams: [BLOCK], or pairs."""
    stored = ()
    for i in tl.static_range(len(states_ptr)):
        if FORMATS[i] == LOG:
            tile = load_pairs(states_ptr[i], first, length, BLOCK)
        else:
            tile = tl.load(states_ptr[i] + first + lane, mask=mask, other=0.0)
        stored = stored + (tile,)
    return stored


@triton.jit
def load_scales(scales_ptr, first, length, FORMATS: tl.constexpr, BLOCK: tl.constexpr):
    """Of each state: [BLOCK // 128] from unit `first` on; a number that means nothing for a plain one."""
    unit = tl.arange(0, BLOCK // UNIT)
    scales = ()
    for i in tl.static_range(len(FORMATS)):
        if FORMATS[i] == PLAIN:
            scales = scales + (0.0,)
        else:
            scales = scales + (tl.load(scales_ptr[i] + first + unit, mask=unit * UNIT < length, other=0),)
    return scales


@triton.jit
def spread(scale, BLOCK: tl.constexpr):
    """What each unit has, for each of its elements, [BLOCK]."""
    return tl.reshape(tl.broadcast_to(tl.expand_dims(scale, 1), [BLOCK // UNIT, UNIT]), [BLOCK])


@triton.jit
def numbers_of(stored, scales, FORMATS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """States in the dtype of the arithmetic."""
    states = ()
    for i in tl.static_range(len(stored)):
        if FORMATS[i] == ROOT:
            state = root_number(stored[i].to(tl.float32), spread(scales[i], BLOCK))
        elif FORMATS[i] == ROOT_SQUARES:
            state = root_square(stored[i].to(tl.float32), spread(scales[i], BLOCK))
        elif FORMATS[i] == LOG:
            state = log_numbers(stored[i], spread(scales[i], BLOCK), BLOCK)
        else:
            state = stored[i].to(COMPUTE)
        states = states + (state,)
    return states


@triton.jit
def largest(state, BLOCK: tl.constexpr):
    """The largest finite magnitude of each unit."""
    size = tl.where(state - state == 0.0, tl.abs(state), 0.0)
    return tl.max(tl.reshape(size, [BLOCK // UNIT, UNIT]), axis=1)


@triton.jit
def to_store(tile, real, DTYPE: tl.constexpr):
    return round_to(tl.where(real, tile, 0.0), DTYPE)


@triton.jit
def value_to_store(
    value, real, DTYPE: tl.constexpr, keys_ptr, slot, step, local, AT_RANDOM: tl.constexpr, BLOCK: tl.constexpr
):
    """A tile of plain values as it is stored."""
    if AT_RANDOM:
        bits = draw_bits(keys_ptr, slot, step, VALUES, local, BLOCK)
        stored = round_at_random(tl.where(real, value, 0.0), bits)
    else:
        stored = to_store(value, real, DTYPE)
    return stored


@triton.jit
def state_to_store(
    state, real, DTYPE: tl.constexpr, keys_ptr, slot, step, local, DRAW: tl.constexpr, BLOCK: tl.constexpr
):
    """The same of a state that may be rounded at random: by the rule's draw number DRAW, or to nearest if it is -1."""
    if DRAW >= 0:
        bits = draw_bits(keys_ptr, slot, step, STATES + DRAW, local, BLOCK)
        stored = round_at_random(tl.where(real, state, 0.0), bits)
    else:
        stored = to_store(state, real, DTYPE)
    return stored


@triton.jit
def unmoved(old, value, row, fresh, COMPUTE: tl.constexpr, i: tl.constexpr, STARTS: tl.constexpr):
    """What a masked element keeps of a state: what is stored, or its initial value, which may never have been."""
    kept = old
    if STARTS is not None:
        if STARTS[i] == -2:
            kept = tl.where(fresh, round_to(value.to(COMPUTE), old.dtype), old)
        elif STARTS[i] >= 0:
            kept = tl.where(fresh, round_to(row[STARTS[i]].to(COMPUTE), old.dtype), old)
    return kept


@triton.jit
def store_states(
    states_ptr,
    scales_ptr,
    start,  # of the tile in the states' streams
    lane,
    first,  # unit of the tile in the scales' streams
    states,  # what the rule made of them
    begun,  # as numbers, before the rule
    old,  # as they are stored
    frozen,  # where they stay; None where all train
    value,  # before the rule
    row,
    fresh,
    real,
    length,
    mask,
    keys_ptr,
    slot,
    step,
    local,
    STARTS: tl.constexpr,
    FORMATS: tl.constexpr,
    DRAWS: tl.constexpr,
    FIRST: tl.constexpr,
    STOP: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Stores the states from FIRST to STOP."""
    for i in tl.static_range(FIRST, STOP):
        if FORMATS[i] == PLAIN:
            new = state_to_store(states[i], real, old[i].dtype, keys_ptr, slot, step, local, DRAWS[i], BLOCK)
            # Chosen between numbers as they are stored: a way through COMPUTE and back would not keep a NaN's bits.
            if frozen is not None:
                new = tl.where(frozen, unmoved(old[i], value, row, fresh, COMPUTE, i, STARTS), new)
            tl.store(states_ptr[i] + start + lane, new, mask=mask)
        else:
            unit = tl.arange(0, BLOCK // UNIT)
            state = states[i]
            if frozen is not None:
                state = tl.where(frozen, begun[i], state)
            state = tl.where(real, state, 0.0)
            if FORMATS[i] == LOG:
                draw = tl.full([BLOCK], 0x8000, tl.uint16)
                if DRAWS[i] >= 0:
                    draw = turning_bits(keys_ptr, slot, step, DRAWS[i], local, BLOCK)
                scale = log_grid(state, BLOCK)
                store_pairs(states_ptr[i], start, log_codes(state, spread(scale, BLOCK), draw), length, BLOCK)
            else:
                scale = largest(state, BLOCK)
                if FORMATS[i] == ROOT:
                    code = root_code(state, spread(scale, BLOCK))
                else:
                    code = root_code_of_square(state, spread(scale, BLOCK))
                # By way of an integer that holds them all: a conversion to one that does not is anybody's guess.
                tl.store(states_ptr[i] + start + lane, code.to(tl.int32).to(old[i].dtype), mask=mask)
            tl.store(scales_ptr[i] + first + unit, scale, mask=unit * UNIT < length)


def codes_of(states: Sequence[formats.Stored]) -> tuple[int, ...]:
    """FORMATS of a launch."""
    return tuple(CODES[state.format] for state in states)


def scales_of(states: Sequence[formats.Stored]) -> tuple[Tensor, ...]:
    """The scales of each state; something that is not read of a plain one."""
    return tuple(state.beside[0] if state.beside else state.buffer for state in states)
