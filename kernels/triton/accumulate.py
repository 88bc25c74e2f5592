"""Gathers scattered gradients into the flat stream and takes their norm on the way: one launch.

    grads <- scale * source                 (overwrite: the first micro-batch; untouched variables become zeros)
    grads <- grads + scale * source         (add)
    norm alone divides by `grad_scale`, where a GradScaler scaled the loss
    norm  <- sqrt(sum of grads^2)           of what the launch leaves behind; not stored without STORE

Traffic: overwrite 4 B read (source) + 4 B written; add 8 B read + 4 B written; norm alone 4 B read, per float32
parameter; 1 B more where elements are masked. The tile table adds 44 B a tile of `BLOCK` elements, sums of squares
8 B a unit of 128.
Numerics: float32 inside (float64 for float64 regions), IEEE, no fp fusion. `squares.py` says in which order squares are
added: the same bits for any number of programs and any block.
Aliasing: `grads` in place; sources may not overlap it. Padding of `grads` stays zero and counts in no norm.
Masked elements count as 0, whatever their gradient holds, and 0 is stored for them.

VIEWED sources are views of a stream that starts as -0.0: a square of -0.0 is then taken as -0.0, not 0, so that the sum
of a unit is -0.0 if, and only if, every element of it is. Written elements that are masked give 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compile import div_rn
from .squares import negated_where, negative_zeros, program_tiles, reduce_squares, store_units, unit_sums
from .tiles import load_frozen, load_source_if_any, padded_mask, source_address, tile_row


@triton.jit(do_not_specialize=["tiles", "units", "slot"], do_not_specialize_on_alignment=["frozen_ptr"])
def accumulate_kernel(
    tiles_ptr,  # [tiles, 5] int64
    firsts_ptr,  # [tiles + 1] int32: first unit of each tile, then `units`
    sources_ptr,  # [variables, 2] int64: address (0: none) and dtype code
    grads_ptr,  # [numel] in/out
    squares_ptr,  # [units] scratch
    groups_ptr,  # [groups] float64 scratch
    arrived_ptr,  # [groups + 1] int32, zero between launches
    owners_ptr,  # [units] int32: variables; read with VIEWED
    written_ptr,  # [1 + variables] int32 in/out with VIEWED
    sums_ptr,  # [regions] float64 out
    norm_ptr,  # [] out
    frozen_ptr,  # [numel] uint8: not 0 where a gradient counts as 0; None where all elements train
    scale: tl.float64,  # without the annotation a launch passes floats as float32
    grad_scale_ptr,  # [] float32, read with SCALED
    tiles,
    units,
    slot,
    STORE: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    VIEWED: tl.constexpr,
    SOURCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    factor = tl.full([], scale, COMPUTE)
    if SCALED:
        factor = div_rn(factor, tl.load(grad_scale_ptr).to(COMPUTE))
    first, last = program_tiles(tiles)
    start, local, length, variable, _ = tile_row(tiles_ptr, first)
    unit = tl.load(firsts_ptr + first)
    for tile in range(first, last):
        address = source_address(sources_ptr, variable)
        grad = load_source_if_any(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE)
        mask = padded_mask(lane, length)
        if STORE and ADD:
            before = tl.load(grads_ptr + start + lane, mask=mask, other=0.0)
        if frozen_ptr is not None:
            frozen = load_frozen(frozen_ptr, start, lane, mask, COMPUTE)
        # Behind the loads of this tile: before them, the next row would hold up what waits for nothing.
        after = tl.minimum(tile + 1, last - 1)
        next_start, next_local, next_length, next_variable, _ = tile_row(tiles_ptr, after)
        next_unit = tl.load(firsts_ptr + after)
        real = lane < length
        if VIEWED:
            untouched = negative_zeros(grad) | ~real
        if STORE or SCALED:
            # Not `grad * factor` alone: an infinite one would make NaN of padding and of variables without a gradient.
            grad = tl.where(real & (address != 0), grad * factor, 0.0)
        stored = mask
        if STORE and ADD:
            grad += before
            stored = mask & (address != 0)
        if frozen_ptr is not None:
            # Not a product: NaN and infinity must not come through.
            grad = tl.where(frozen, 0.0, grad)
        if STORE:
            tl.store(grads_ptr + start + lane, grad, mask=stored)
        square = grad * grad
        if VIEWED:
            square = negated_where(square, untouched)
        sums = unit_sums(square, BLOCK)
        if VIEWED:
            # A variable without elements was written if the host says so, by giving it an address.
            sums = tl.where((length == 0) & (address != 0), 0.0, sums)
        store_units(squares_ptr, unit, sums, length, BLOCK)
        start, local, length, variable, unit = next_start, next_local, next_length, next_variable, next_unit
    begin, end = tl.load(firsts_ptr + first), tl.load(firsts_ptr + last)
    reduce_squares(
        squares_ptr,
        groups_ptr,
        arrived_ptr,
        owners_ptr,
        written_ptr,
        sums_ptr,
        norm_ptr,
        slot,
        begin,
        end,
        units,
        VIEWED,
    )
