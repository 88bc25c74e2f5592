"""Norms of every variable, of its value and its gradient, in one launch.

    out[i, 0] = ||value_i||_p        out[i, 1] = ||grad_i||_p        for p = 1, 2, inf or any p > 0

Traffic: 4 B read per float32 value and per float32 gradient, 12 B a tile of partials; 1 B per gradient more where
elements are masked.
Numerics: float32 inside (float64 for float64 regions); |x|^p for p other than 1, 2 and inf through exp2 and log2, about
1e-6 relative. Each variable's partials are reduced in tile order by the program that arrives last: deterministic.
Aliasing: reads only. Padding counts in no norm, and masked elements in none of a gradient. A variable without a
gradient has norm 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .compile import sqrt_rn
from .tiles import VARIABLE_COLUMNS, load_frozen, load_source_if_any, padded_mask, source_address, tile_row

ORDER_OTHER = tl.constexpr(-1)
ORDER_INF = tl.constexpr(0)


@triton.jit
def power(x, order, ORDER: tl.constexpr):
    x = tl.abs(x)
    if ORDER == 2:
        x = x * x
    elif ORDER == ORDER_OTHER:
        x = tl.where(x == 0.0, 0.0, tl.exp2(order * tl.log2(x)))
    return x


@triton.jit
def larger(a, b):
    """Maximum that keeps NaN, as torch's inf-norm does."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def combine(x, ORDER: tl.constexpr):
    if ORDER == ORDER_INF:
        total = tl.reduce(x, 0, larger)
    else:
        total = tl.sum(x)
    return total


@triton.jit
def root(total, order, ORDER: tl.constexpr):
    if ORDER == 2:
        total = sqrt_rn(total)
    elif ORDER == ORDER_OTHER:
        total = tl.where(total == 0.0, 0.0, tl.exp2(tl.log2(total) / order))
    return total


@triton.jit
def reduce_variable(partials_ptr, first, count, order, ORDER: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], COMPUTE)
    for base in range(0, count, BLOCK):
        part = tl.load(partials_ptr + first + base + lane, mask=base + lane < count, other=0.0, cache_modifier=".cg")
        if ORDER == ORDER_INF:
            total = larger(total, part)
        else:
            total += part
    return root(combine(total, ORDER), order, ORDER)


@triton.jit(do_not_specialize_on_alignment=["frozen_ptr"])
def variable_norms_kernel(
    tiles_ptr,  # [tiles, 5] int64
    variables_ptr,  # [variables, 3] int64: first tile, number of tiles, slot
    sources_ptr,  # [variables, 2] int64
    values_ptr,  # [numel]
    partials_ptr,  # [2, tiles] scratch
    counters_ptr,  # [variables] int32, zero between launches
    out_ptr,  # [variables, 2] out
    frozen_ptr,  # [numel] uint8: not 0 where a gradient counts as 0; None where all elements train
    order,
    VALUES: tl.constexpr,
    GRADS: tl.constexpr,
    ORDER: tl.constexpr,
    SOURCE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    tiles = tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    start, local, length, variable, _ = tile_row(tiles_ptr, tile)
    if VALUES:
        value = tl.load(values_ptr + start + lane, mask=padded_mask(lane, length), other=0.0).to(COMPUTE)
        tl.store(partials_ptr + tile, combine(power(value, order, ORDER), ORDER))
    if GRADS:
        address = source_address(sources_ptr, variable)
        grad = load_source_if_any(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE)
        if frozen_ptr is not None:
            frozen = load_frozen(frozen_ptr, start, lane, padded_mask(lane, length), COMPUTE)
            grad = tl.where(frozen, 0.0, grad)
        tl.store(partials_ptr + tiles + tile, combine(power(grad, order, ORDER), ORDER))
    first = tl.load(variables_ptr + VARIABLE_COLUMNS * variable)
    count = tl.load(variables_ptr + VARIABLE_COLUMNS * variable + 1)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + variable, 1, sem="acq_rel") == count - 1:
        tl.store(counters_ptr + variable, 0)
        value_norm = 0.0
        grad_norm = 0.0
        if VALUES:
            value_norm = reduce_variable(partials_ptr, first, count, order, ORDER, COMPUTE, BLOCK)
        if GRADS:
            grad_norm = reduce_variable(partials_ptr + tiles, first, count, order, ORDER, COMPUTE, BLOCK)
        tl.store(out_ptr + variable * 2, value_norm)
        tl.store(out_ptr + variable * 2 + 1, grad_norm)
