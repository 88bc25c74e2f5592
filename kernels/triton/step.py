"""One optimizer step over all tiles of a region: one launch for any rule, any number of variables and groups.

    g <- gradient / grad_scale  where a GradScaler scaled the loss
    g <- g * clip               clip = min(1, max_norm / (norm + 1e-6)) as torch's; gradients stay as they are
    p, state <- RULE(p, g, state, hyper, step)   hyper: the group's numbers, and what SCALARS makes of them in float64

Traffic: values and each state read and written once, the gradient read once: 28 B per float32 AdamW parameter, 1 B more
where elements are masked. The tile table adds 40 B a tile of `BLOCK` elements.
Numerics: float32 inside (float64 for float64 regions), IEEE division and root, no fp fusion; stores round to nearest
even, those of the states in DRAWS to bfloat16 at random (`stochastic.py`).
Aliasing: values, states and steps in place; padding is stored as zero whatever the rule makes of it. A variable whose
source is 0 is untouched, and so is a VIEWED one that was not written: no byte of it is read or written, its count
stays. With SKIP and a norm that is not finite, or with FOUND_INF and a `found_inf` that is not 0, nothing changes but
`skipped`. Where `frozen` is not 0, what was read is written back, bit for bit and in full width.

The step count of a variable is read by all its programs and raised by the last of them to arrive, so a launch needs no
second pass, and a count stays where it is for the life of the optimizer: a captured graph goes on counting there. So do
the scalars that a variable keeps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compile import div_rn
from .numbers import first_of, is_fresh, load_own, load_row, load_sums, narrowed, picked, started, store_own
from .stochastic import draw_bits, round_at_random
from .tiles import VARIABLE_COLUMNS, load_frozen, load_source, padded_mask, round_to, source_address, tile_row


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


@triton.jit
def load_states(states_ptr, offset, mask):
    stored = ()
    for i in tl.static_range(len(states_ptr)):
        stored = stored + (tl.load(states_ptr[i] + offset, mask=mask, other=0.0),)
    return stored


@triton.jit
def widened(stored, COMPUTE: tl.constexpr):
    states = ()
    for i in tl.static_range(len(stored)):
        states = states + (stored[i].to(COMPUTE),)
    return states


@triton.jit
def to_store(tile, real, DTYPE: tl.constexpr):
    return round_to(tl.where(real, tile, 0.0), DTYPE)


@triton.jit
def state_to_store(
    state, real, DTYPE: tl.constexpr, keys_ptr, slot, step, local, DRAW: tl.constexpr, BLOCK: tl.constexpr
):
    """The same of a state that may be rounded at random: by the rule's draw number DRAW, or to nearest if it is -1."""
    if DRAW >= 0:
        bits = draw_bits(tl.load(keys_ptr), tl.load(keys_ptr + 1 + slot), step.to(tl.int64), DRAW, local, BLOCK)
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


@triton.jit(do_not_specialize=["base"], do_not_specialize_on_alignment=["frozen_ptr"])
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
    values_ptr,  # [numel] in/out
    states_ptr,  # tuple of [numel of their range] in/out
    own_ptr,  # tuple of [slots] float32 in/out: scalars of the variables
    keys_ptr,  # [1 + slots] int64, read with DRAWS: seed, then keys of the variables' names
    sums_ptr,  # [variables, SUMS] float64, of the statistics kernel
    frozen_ptr,  # [numel] uint8: not 0 where value and state stay; None where all elements train
    base,  # element of the region at which the states begin, a multiple of 128
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
    DRAWS: tl.constexpr,
    CLIP: tl.constexpr,
    SKIP: tl.constexpr,
    SCALED: tl.constexpr,
    FOUND_INF: tl.constexpr,
    COUNT_SKIPS: tl.constexpr,
    VIEWED: tl.constexpr,
    SOURCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    # Known when compiled: with neither, nothing is loaded.
    if SKIP or FOUND_INF:  # noqa: SIM102
        if is_skipped(norm_ptr, found_inf_ptr, SKIP, FOUND_INF):
            if COUNT_SKIPS and tile == 0:
                tl.store(skipped_ptr, tl.load(skipped_ptr) + 1)
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
    old_value = tl.load(values_ptr + offset, mask=mask, other=0.0)
    state_offset = tl.multiple_of(start - tl.multiple_of(base, 128), 16) + lane
    old_states = load_states(states_ptr, state_offset, mask)
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
    states = widened(old_states, COMPUTE)
    if STARTS is not None:
        states = started(states, old_value.to(COMPUTE), is_fresh(count), row, STARTS)
    value, states = RULE(old_value.to(COMPUTE), grad, states, hyper, step.to(COMPUTE))
    real = lane < length
    new_value = to_store(value, real, old_value.dtype)
    # Chosen between numbers as they are stored: a way through COMPUTE and back would not keep the bits of a NaN.
    if frozen_ptr is not None:
        frozen = load_frozen(frozen_ptr, start, lane, mask, old_value.dtype)
        new_value = tl.where(frozen, old_value, new_value)
    tl.store(values_ptr + offset, new_value, mask=mask)
    for i in tl.static_range(STORED):
        new_state = state_to_store(states[i], real, old_states[i].dtype, keys_ptr, slot, step, local, DRAWS[i], BLOCK)
        if frozen_ptr is not None:
            kept = unmoved(old_states[i], old_value, row, is_fresh(count), COMPUTE, i, STARTS)
            new_state = tl.where(frozen, kept, new_state)
        tl.store(states_ptr[i] + state_offset, new_state, mask=mask)
    # One thread arrives for all warps, so all must have read the count first: the last program raises it at once.
    tl.debug_barrier()
    tiles = tl.load(variables_ptr + VARIABLE_COLUMNS * variable + 1)
    if tl.atomic_add(arrived_ptr + variable, 1, sem="acq_rel") == tiles - 1:
        tl.store(arrived_ptr + variable, 0)
        tl.store(steps_ptr + slot, step)
        if OWN_STARTS is not None:
            store_own(own_ptr, slot, results, KEPT)
