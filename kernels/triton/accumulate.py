"""Gathers scattered gradients into the flat stream and takes their norm on the way: one launch.

    grads <- scale * source                 (overwrite: the first micro-batch; untouched variables become zeros)
    grads <- grads + scale * source         (add)
    norm alone divides by `grad_scale`, where a GradScaler scaled the loss
    norm  <- sqrt(sum of grads^2)           of what the launch leaves behind; not stored without STORE

Traffic: overwrite 4 B read (source) + 4 B written; add 8 B read + 4 B written; norm alone 4 B read, per float32
parameter; 1 B more where elements are masked. The tile table adds 40 B a tile of `BLOCK` elements.
Numerics: float32 inside (float64 for float64 regions), IEEE, no fp fusion. Sums of squares per lane, then a tree over
lanes, then over programs, in an order fixed by the number of programs: the same bits on every run of one device.
Aliasing: `grads` in place; sources may not overlap it. Padding of `grads` stays zero and counts in no norm.
Masked elements count as 0, whatever their gradient holds, and 0 is stored for them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compile import div_rn, sqrt_rn
from .tiles import arrive, load_frozen, load_source, padded_mask, tile_row


@triton.jit
def reduce_square_sum(total, partials_ptr, counter_ptr, sums_ptr, norm_ptr, slot, PROGRAMS: tl.constexpr):
    """The last program adds all partials, keeps the region's sum in `sums[slot]` and writes the norm so far.

    Launches of one norm run in slot order on one stream, so the last of them leaves the norm of all regions.
    """
    tl.store(partials_ptr + tl.program_id(0), tl.sum(total))
    if arrive(counter_ptr):
        lane = tl.arange(0, PROGRAMS)
        mask = lane < tl.num_programs(0)
        partials = tl.load(partials_ptr + lane, mask=mask, other=0.0, cache_modifier=".cg")
        square_sum = tl.sum(partials).to(sums_ptr.dtype.element_ty)
        tl.store(sums_ptr + slot, square_sum)
        for earlier in range(slot):
            square_sum += tl.load(sums_ptr + earlier)
        tl.store(norm_ptr, sqrt_rn(square_sum))


@triton.jit(do_not_specialize=["tiles", "slot"], do_not_specialize_on_alignment=["frozen_ptr"])
def accumulate_kernel(
    tiles_ptr,  # [tiles, 5] int64
    sources_ptr,  # [variables, 2] int64: address (0: none) and dtype code
    grads_ptr,  # [numel] in/out
    partials_ptr,  # [programs] scratch
    counter_ptr,  # [1] int32, zero between launches
    sums_ptr,  # [regions] out
    norm_ptr,  # [] float32 out
    frozen_ptr,  # [numel] uint8: not 0 where a gradient counts as 0; None where all elements train
    scale: tl.float64,  # without the annotation a launch passes floats as float32
    grad_scale_ptr,  # [] float32, read with SCALED
    tiles,
    slot,
    STORE: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    SOURCE: tl.constexpr,
    ALIGNED: tl.constexpr,
    COMPUTE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], COMPUTE)
    factor = tl.full([], scale, COMPUTE)
    if SCALED:
        factor = div_rn(factor, tl.load(grad_scale_ptr).to(COMPUTE))
    for tile in range(tl.program_id(0).to(tl.int64), tiles, tl.num_programs(0)):
        start, local, length, variable, _ = tile_row(tiles_ptr, tile)
        grad, address = load_source(sources_ptr, variable, local, length, lane, SOURCE, ALIGNED, COMPUTE)
        # Not `grad * scale` alone: an infinite scale would make NaN of padding and of variables without a gradient.
        grad = tl.where((lane < length) & (address != 0), grad * factor, 0.0)
        mask = padded_mask(lane, length)
        stored = mask
        if STORE and ADD:
            grad += tl.load(grads_ptr + start + lane, mask=mask, other=0.0)
            stored = mask & (address != 0)
        if frozen_ptr is not None:
            # Not a product: NaN and infinity must not come through.
            grad = tl.where(load_frozen(frozen_ptr, start, lane, mask, COMPUTE), 0.0, grad)
        if STORE:
            tl.store(grads_ptr + start + lane, grad, mask=stored)
        total += grad * grad
    reduce_square_sum(total, partials_ptr, counter_ptr, sums_ptr, norm_ptr, slot, PROGRAMS)
