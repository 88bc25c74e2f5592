"""Sums over every variable that its step depends on, in one launch before it.

    sums[variable] = sum over the elements that train of STATISTICS(p, g, state, hyper, step)

with the gradient as the step sees it: unscaled and clipped. With MOVES, it also returns the states, which are stored.

Traffic: what the terms are made of, read once: StableAdamW 8 B a float32 parameter, a trust ratio 8 B; with MOVES each
state written as well. 4 B a unit of 128 elements and a sum.
Numerics: terms in float32 (float64 for float64 regions), added as in `squares.py`: units of 128 elements, counted from
the variable's start, neighbors first; units in float64, unit i in lane i % 1,024, lanes by neighbors. The same bits for
any block, number of programs and place in the layout.
Aliasing: values and gradients are only read. A variable whose source is 0, a VIEWED one that was not written, and all
of them in a skipped step keep their sums, which that step does not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compile import div_rn
from .numbers import first_of, is_fresh, load_own, load_row, narrowed, picked, started
from .split import joined, lower_bits, upper_bits
from .squares import store_units, unit_sums, variable_sum
from .step import clip_coefficient, is_skipped
from .stored import UNIT, load_scales, load_states, numbers_of, store_states, unit_of
from .tiles import VARIABLE_COLUMNS, load_frozen, load_source, padded_mask, source_address, tile_row, values_at


@triton.jit(do_not_specialize=["base", "unit_base", "units"], do_not_specialize_on_alignment=["frozen_ptr"])
def statistics_kernel(
    tiles_ptr,  # [tiles, 5] int64
    variables_ptr,  # [variables, 3] int64: first tile, number of tiles, slot
    firsts_ptr,  # [tiles + 1] int32: first unit of each tile
    sources_ptr,  # [variables, 2] int64: address (0: untouched) and dtype code
    written_ptr,  # [1 + variables] int32, read with VIEWED
    hyper_ptr,  # [groups, COLUMNS] float64
    steps_ptr,  # [slots] float32: steps taken
    arrived_ptr,  # [variables] int32, zero between launches
    norm_ptr,  # []
    grad_scale_ptr,  # [] float32, read with SCALED
    found_inf_ptr,  # [] float32, read with FOUND_INF
    values_ptr,  # [numel]; with PLACED, int64 [variables]: where each one's values lie
    low_ptr,  # [trainable numel] int16 or int8, of split values
    prints_ptr,  # [units] int32, of split values
    states_ptr,  # tuple of [numel of their range]; written with MOVES
    scales_ptr,  # tuple of [units of their range] float32, where a state is of a format
    variable_units_ptr,  # [variables] int64: first unit of each, read where a format has something for each unit
    own_ptr,  # tuple of [slots] float32
    keys_ptr,  # [1 + slots] int64, read with DRAWS: seed, then keys of the variables' names
    units_ptr,  # [SUMS, units] scratch
    sums_ptr,  # [variables, SUMS] float64 out
    frozen_ptr,  # [numel] uint8, or None
    units,
    base,
    unit_base,
    STATISTICS: tl.constexpr,
    NUMBERS: tl.constexpr,
    PICKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FIELDS: tl.constexpr,
    STARTS: tl.constexpr,
    SCALARS: tl.constexpr,
    KNOWN: tl.constexpr,
    KNOWN_PICKS: tl.constexpr,
    OWN_STARTS: tl.constexpr,
    SUMS: tl.constexpr,
    MOVES: tl.constexpr,
    BESIDE: tl.constexpr,
    DRAWS: tl.constexpr,
    SPLIT: tl.constexpr,
    FORMATS: tl.constexpr,
    CLIP: tl.constexpr,
    SKIP: tl.constexpr,
    SCALED: tl.constexpr,
    FOUND_INF: tl.constexpr,
    VIEWED: tl.constexpr,
    SOURCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACED: tl.constexpr = None,
):
    tile = tl.program_id(0).to(tl.int64)
    if SKIP or FOUND_INF:  # noqa: SIM102
        if is_skipped(norm_ptr, found_inf_ptr, SKIP, FOUND_INF):
            return
    lane = tl.arange(0, BLOCK)
    start, local, length, variable, group = tile_row(tiles_ptr, tile)
    address = source_address(sources_ptr, variable)
    if address == 0:
        return
    if VIEWED:  # noqa: SIM102
        if tl.load(written_ptr + 1 + variable) != tl.load(written_ptr):
            return
    offset = start + lane
    mask = padded_mask(lane, length)
    place, inside = values_at(values_ptr, variable, start, local, length, lane, mask, PLACED)
    old_value = tl.load(place, mask=inside, other=0.0)
    state_start = tl.multiple_of(start - tl.multiple_of(base, 128), 16)
    old_states = load_states(states_ptr, state_start, lane, mask, length, FORMATS, BLOCK)
    first_unit = unit_of(variable_units_ptr, variable, local, SPLIT, FORMATS)
    scales = load_scales(scales_ptr, first_unit - unit_base, length, FORMATS, BLOCK)
    if SPLIT:
        real = lane < length
        unit = tl.arange(0, BLOCK // UNIT)
        old_low = tl.load(low_ptr + offset, mask=mask, other=0)
        prints = tl.load(prints_ptr + first_unit + unit, mask=unit * UNIT < length, other=0)
        upper = upper_bits(old_value)
        value = joined(upper, lower_bits(old_low, upper, prints, real, SPLIT, BLOCK), SPLIT)
    else:
        value = old_value.to(COMPUTE)
    slot = tl.load(variables_ptr + VARIABLE_COLUMNS * variable + 2)
    row = load_row(hyper_ptr, group, COLUMNS)
    count = tl.load(steps_ptr + slot)
    step = count + 1.0
    grad = load_source(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE)
    if SCALED:
        grad = grad * div_rn(tl.full([], 1.0, COMPUTE), tl.load(grad_scale_ptr).to(COMPUTE))
    if CLIP:
        max_norm = tl.load(hyper_ptr + group * COLUMNS).to(COMPUTE)
        grad = grad * clip_coefficient(tl.load(norm_ptr).to(COMPUTE), max_norm)
    numbers = first_of(row, FIELDS)
    if OWN_STARTS is not None:
        numbers = numbers + load_own(own_ptr, slot, is_fresh(count), row, OWN_STARTS)
    if SCALARS is not None:
        numbers = numbers + SCALARS(KNOWN(*picked(numbers, KNOWN_PICKS)), step.to(tl.float64))
    hyper = NUMBERS(*narrowed(picked(numbers, PICKS), COMPUTE))
    begun = numbers_of(old_states, scales, FORMATS, COMPUTE, BLOCK)
    if STARTS is not None:
        begun = started(begun, value, is_fresh(count), row, STARTS)
    if MOVES:
        terms, states = STATISTICS(value, grad, begun, hyper, step.to(COMPUTE))
    else:
        terms = STATISTICS(value, grad, begun, hyper, step.to(COMPUTE))
    real = lane < length  # again, where it is read: kept until here, it takes registers that gfx942 does not have
    counts = real
    frozen = None
    if frozen_ptr is not None:
        frozen = load_frozen(frozen_ptr, start, lane, mask, values_ptr.dtype.element_ty)
        counts = real & (frozen == 0)
    if MOVES:
        store_states(
            states_ptr, scales_ptr, state_start, lane, first_unit - unit_base, states, begun, old_states, frozen, value,
            row, is_fresh(count), real, length, mask, keys_ptr, slot, step, local, STARTS, FORMATS, DRAWS, BESIDE,
            len(states_ptr), COMPUTE, BLOCK,
        )  # fmt: skip
    first = tl.load(firsts_ptr + tile)
    for i in tl.static_range(SUMS):
        sums = unit_sums(tl.where(counts, terms[i], 0.0), BLOCK)
        store_units(units_ptr + i * units.to(tl.int64), first, sums, length, BLOCK)
    first_tile = tl.load(variables_ptr + VARIABLE_COLUMNS * variable)
    tiles = tl.load(variables_ptr + VARIABLE_COLUMNS * variable + 1)
    tl.debug_barrier()
    if tl.atomic_add(arrived_ptr + variable, 1, sem="acq_rel") == tiles - 1:
        tl.store(arrived_ptr + variable, 0)
        begin, end = tl.load(firsts_ptr + first_tile), tl.load(firsts_ptr + first_tile + tiles)
        for i in tl.static_range(SUMS):
            total = variable_sum(units_ptr + i * units.to(tl.int64), begin, end)
            tl.store(sums_ptr + variable * SUMS + i, total)
