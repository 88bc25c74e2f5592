"""One optimizer step over all tiles of a region: one launch for any rule, any number of variables and groups.

    g <- gradient / grad_scale  where a GradScaler scaled the loss
    g <- g * clip               clip = min(1, max_norm / (norm + 1e-6)) as torch's; gradients stay as they are
    p, state <- RULE(p, g, state, hyper, step)   hyper: the group's numbers, and what SCALARS makes of them in float64

Traffic: values and each state read and written once, the gradient read once: 28 B per float32 AdamW parameter, 1 B more
where elements are masked, 4 B more where gradients are cleared. The tile table adds 40 B a tile of `BLOCK` elements.
With OBSERVE, 8 sums of 4 B a unit of 128 elements are written and read once more, 0.5 B an element.
Numerics: float32 inside (float64 for float64 regions), IEEE division and root, no fp fusion; stores round to nearest
even, those of the states in DRAWS, and of values with AT_RANDOM, to bfloat16 at random (`stochastic.py`).
Aliasing: values, states and steps in place; padding is stored as zero whatever the rule makes of it. With PLACED, each
variable's values lie at an address of their own, element by element, without padding. A variable whose
source is 0 is untouched, and so is a VIEWED one that was not written: no byte of it is read or written, its count
stays. With SKIP and a norm that is not finite, or with FOUND_INF and a `found_inf` that is not 0, nothing changes but
`skipped`. Where `frozen` is not 0, what was read is written back, bit for bit and in full width. With CLEAR, gradients
become -0.0, whether there is a step or not: behind a barrier, so that every warp has read its own.

The step count of a variable is read by all its programs and raised by the last of them to arrive, so a launch needs no
second pass, and a count stays where it is for the life of the optimizer: a captured graph goes on counting there. So do
the scalars that a variable keeps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compile import div_rn
from .numbers import first_of, is_fresh, load_own, load_row, load_sums, narrowed, picked, started, store_own
from .split import joined, lower_bits, parted, store_split, upper_bits
from .squares import store_units, unit_sums, variable_sum
from .stored import UNIT, load_scales, load_states, numbers_of, store_states, to_store, unit_of, value_to_store
from .tiles import (
    VARIABLE_COLUMNS,
    clear_source,
    load_frozen,
    load_source,
    padded_mask,
    source_address,
    tile_row,
    values_at,
)


@triton.jit
def clip_coefficient(norm, max_norm):
    """torch's: at most 1, and NaN where the norm is NaN."""
    coefficient = div_rn(max_norm, norm + 1e-6)
    return tl.where(coefficient > 1.0, 1.0, coefficient)


@triton.jit
def is_skipped(norm_ptr, found_inf_ptr, SKIP: tl.constexpr, FOUND_INF: tl.constexpr):
    skipped = False
    if SKIP:
        skipped = not (tl.abs(tl.load(norm_ptr)) < float("inf"))
    if FOUND_INF:
        skipped = skipped or (tl.load(found_inf_ptr) != 0.0)
    return skipped


@triton.jit(do_not_specialize=["base", "unit_base", "scratch_units"], do_not_specialize_on_alignment=["frozen_ptr"])
def step_kernel(
    tiles_ptr,  # [tiles, 5] int64
    variables_ptr,  # [variables, 3] int64: first tile, number of tiles, slot
    sources_ptr,  # [variables, 2] int64: address (0: untouched) and dtype code
    written_ptr,  # [1 + variables] int32, read with VIEWED: which variables the norm's launch found written
    hyper_ptr,  # [groups, COLUMNS]: max_norm, then what the rule unpacks
    steps_ptr,  # [slots] float32 in/out: steps taken
    arrived_ptr,  # [variables] int32, zero between launches
    norm_ptr,  # [] float32, of the gradients without their scale
    grad_scale_ptr,  # [] float32, read with SCALED
    found_inf_ptr,  # [] float32, read with FOUND_INF
    skipped_ptr,  # [] int32 in/out
    values_ptr,  # [numel] in/out; with PLACED, int64 [variables]: where each one's values lie
    low_ptr,  # [trainable numel] int16 or int8 in/out, of split values
    prints_ptr,  # [units] int32 in/out, of split values
    states_ptr,  # tuple of [numel of their range] in/out; of a format, its codes
    scales_ptr,  # tuple of [units of their range] float32 in/out, where a state is of a format
    units_ptr,  # [variables] int64: first unit of each, read where a format has something for each unit
    own_ptr,  # tuple of [slots] float32 in/out: scalars of the variables
    keys_ptr,  # [1 + slots] int64, read with DRAWS or AT_RANDOM: seed, then keys of the variables' names
    sums_ptr,  # [variables, SUMS] float64, of the statistics kernel
    firsts_ptr,  # [tiles + 1] int32, read with OBSERVE: first unit of each tile
    scratch_ptr,  # [terms, units], with OBSERVE
    observed_ptr,  # [slots, terms] float64 out, with OBSERVE
    frozen_ptr,  # [numel] uint8: not 0 where value and state stay; None where all elements train
    scratch_units,
    base,  # element of the region at which the states begin, a multiple of 128
    unit_base,  # unit of the region at which their scales begin
    RULE: tl.constexpr,
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
    AFTER: tl.constexpr,
    SUMMED: tl.constexpr,
    SUMMED_PICKS: tl.constexpr,
    KEPT: tl.constexpr,
    STORED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    OBSERVE: tl.constexpr,
    DRAWS: tl.constexpr,
    SPLIT: tl.constexpr,
    AT_RANDOM: tl.constexpr,
    FORMATS: tl.constexpr,
    CLIP: tl.constexpr,
    SKIP: tl.constexpr,
    SCALED: tl.constexpr,
    FOUND_INF: tl.constexpr,
    COUNT_SKIPS: tl.constexpr,
    VIEWED: tl.constexpr,
    SOURCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACED: tl.constexpr = None,
    CLEAR: tl.constexpr = False,
):
    tile = tl.program_id(0).to(tl.int64)
    # Known when compiled: with neither, nothing is loaded.
    if SKIP or FOUND_INF:  # noqa: SIM102
        if is_skipped(norm_ptr, found_inf_ptr, SKIP, FOUND_INF):
            if COUNT_SKIPS and tile == 0:
                tl.store(skipped_ptr, tl.load(skipped_ptr) + 1)
            if CLEAR:
                clear_source(tiles_ptr, sources_ptr, tile, tl.arange(0, BLOCK), SOURCE)
            return
    lane = tl.arange(0, BLOCK)
    start, local, length, variable, group = tile_row(tiles_ptr, tile)
    address = source_address(sources_ptr, variable)
    if address == 0:
        return
    if VIEWED:  # noqa: SIM102
        if tl.load(written_ptr + 1 + variable) != tl.load(written_ptr):
            return
    # All that does not wait for a branch is asked for before the first one: the compiler moves no load across it, and
    # would put those of the states behind the first use of the gradient.
    offset = start + lane
    mask = padded_mask(lane, length)
    place, inside = values_at(values_ptr, variable, start, local, length, lane, mask, PLACED)
    old_value = tl.load(place, mask=inside, other=0.0)
    state_start = tl.multiple_of(start - tl.multiple_of(base, 128), 16)
    old_states = load_states(states_ptr, state_start, lane, mask, length, FORMATS, BLOCK)
    first_unit = unit_of(units_ptr, variable, local, SPLIT, FORMATS)
    scales = load_scales(scales_ptr, first_unit - unit_base, length, FORMATS, BLOCK)
    if SPLIT:
        unit = tl.arange(0, BLOCK // UNIT)
        old_low = tl.load(low_ptr + offset, mask=mask, other=0)
        prints = tl.load(prints_ptr + first_unit + unit, mask=unit * UNIT < length, other=0)
    slot = tl.load(variables_ptr + VARIABLE_COLUMNS * variable + 2)
    row = load_row(hyper_ptr, group, COLUMNS)
    count = tl.load(steps_ptr + slot)
    if SCALED:
        grad_scale = tl.load(grad_scale_ptr).to(COMPUTE)
    if CLIP:
        norm, max_norm = tl.load(norm_ptr).to(COMPUTE), tl.load(hyper_ptr + group * COLUMNS).to(COMPUTE)
    grad = load_source(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE)
    step = count + 1.0
    if SCALED:
        grad = grad * div_rn(tl.full([], 1.0, COMPUTE), grad_scale)
    plain_grad = grad
    if CLIP:
        grad = grad * clip_coefficient(norm, max_norm)
    numbers = first_of(row, FIELDS)
    if PICKS is not None:
        if OWN_STARTS is not None:
            numbers = numbers + load_own(own_ptr, slot, is_fresh(count), row, OWN_STARTS)
        if SCALARS is not None:
            results = SCALARS(KNOWN(*picked(numbers, KNOWN_PICKS)), step.to(tl.float64))
            numbers = numbers + results
        if SUMS:
            numbers = numbers + load_sums(sums_ptr, variable, SUMS)
        if AFTER is not None:
            numbers = numbers + AFTER(SUMMED(*picked(numbers, SUMMED_PICKS)), step.to(tl.float64))
        hyper = NUMBERS(*narrowed(picked(numbers, PICKS), COMPUTE))
    else:
        hyper = NUMBERS(*numbers)
    real = lane < length
    if SPLIT:
        upper = upper_bits(old_value)
        lower = lower_bits(old_low, upper, prints, real, SPLIT, BLOCK)
        before = joined(upper, lower, SPLIT)
    else:
        before = old_value.to(COMPUTE)
    begun = numbers_of(old_states, scales, FORMATS, COMPUTE, BLOCK)
    if STARTS is not None:
        begun = started(begun, before, is_fresh(count), row, STARTS)
    value, states = RULE(before, grad, begun, hyper, step.to(COMPUTE))
    frozen = None
    if frozen_ptr is not None:
        frozen = load_frozen(frozen_ptr, start, lane, mask, old_value.dtype)
    if SPLIT:
        new_upper, new_lower = parted(tl.where(real, value, 0.0), SPLIT)
        store_split(
            values_ptr, low_ptr, prints_ptr, offset, first_unit, new_upper, new_lower, frozen, upper, lower, real,
            length, mask, SPLIT, BLOCK,
        )  # fmt: skip
    else:
        new_value = value_to_store(value, real, old_value.dtype, keys_ptr, slot, step, local, AT_RANDOM, BLOCK)
        # Chosen between numbers as they are stored: a way through COMPUTE and back would not keep the bits of a NaN.
        if frozen is not None:
            new_value = tl.where(frozen, old_value, new_value)
        tl.store(place, new_value, mask=inside)
    store_states(
        states_ptr, scales_ptr, state_start, lane, first_unit - unit_base, states, begun, old_states, frozen, before,
        row, is_fresh(count), real, length, mask, keys_ptr, slot, step, local, STARTS, FORMATS, DRAWS, 0, STORED,
        COMPUTE, BLOCK,
    )  # fmt: skip
    if OBSERVE is not None:
        counts = real
        if frozen is not None:
            counts = real & (frozen == 0)
        if MOMENTUM >= 0:
            momentum = begun[MOMENTUM]
        elif MOMENTUM == -2:
            momentum = before
        else:
            momentum = tl.zeros([BLOCK], COMPUTE)
        if SPLIT:
            stored = value
        elif AT_RANDOM:
            stored = new_value.to(COMPUTE)
        else:
            stored = to_store(value, real, old_value.dtype).to(COMPUTE)
        terms = OBSERVE(before, value, stored, plain_grad, momentum)
        first = tl.load(firsts_ptr + tile)
        for i in tl.static_range(len(terms)):
            sums = unit_sums(tl.where(counts, terms[i], 0.0), BLOCK)
            store_units(scratch_ptr + i * scratch_units.to(tl.int64), first, sums, length, BLOCK)
    # One thread arrives for all warps, so all must have read the count first: the last program raises it at once.
    tl.debug_barrier()
    if CLEAR:
        clear_source(tiles_ptr, sources_ptr, tile, lane, SOURCE)
    tiles = tl.load(variables_ptr + VARIABLE_COLUMNS * variable + 1)
    if tl.atomic_add(arrived_ptr + variable, 1, sem="acq_rel") == tiles - 1:
        tl.store(arrived_ptr + variable, 0)
        tl.store(steps_ptr + slot, step)
        if OBSERVE is not None:
            first_tile = tl.load(variables_ptr + VARIABLE_COLUMNS * variable)
            begin, end = tl.load(firsts_ptr + first_tile), tl.load(firsts_ptr + first_tile + tiles)
            for i in tl.static_range(len(terms)):
                total = variable_sum(scratch_ptr + i * scratch_units.to(tl.int64), begin, end)
                tl.store(observed_ptr + slot * len(terms) + i, total)
        if OWN_STARTS is not None:
            store_own(own_ptr, slot, results, KEPT)
