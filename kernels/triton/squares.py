"""The sum of squares of a launch: units in the precision of the arithmetic, all of them in float64, in a fixed order.

A unit is `UNIT` elements of one variable, counted from its start; `GROUP` units make a group, counted over all
variables. Within both, neighbors are added, then neighbors of the results, and so on: additions of two numbers, whose
order no layout of threads decides. Groups are added in a fixed order as well. So a sum of squares is the same, bit by
bit, for any block, number of warps and of programs.

Programs take neighboring tiles. Whoever completes a group adds it up, and whoever completes the last group finishes:
no program has more to add than a group for every 131,072 elements of its own, and then the groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..lang import INTERPRETED
from ..segments import UNIT
from .compile import sqrt_rn

UNIT_ELEMENTS = tl.constexpr(UNIT)
GROUP_UNITS = 1024
GROUP = tl.constexpr(GROUP_UNITS)
# Groups are dealt out to so many sums. More would take registers from the loop over tiles, which is why they are few.
SEATS = tl.constexpr(256)
SPLIT = tl.constexpr(INTERPRETED)


@triton.jit
def halved(x, N: tl.constexpr):
    """[N] to [N / 2]: the sums of neighbors."""
    pairs = tl.reshape(x, [N // 2, 2])
    # NumPy, which adds for the interpreter, makes 0 of -0.0 and -0.0. Compiled, `tl.split` would carry neighbors that
    # lie in two threads through shared memory.
    if SPLIT:
        left, right = tl.split(pairs)
        sums = left + right
    else:
        sums = tl.sum(pairs, axis=1)
    return sums


@triton.jit
def unit_sums(x, BLOCK: tl.constexpr):
    """[BLOCK] to [BLOCK / UNIT]."""
    x = halved(x, BLOCK)
    x = halved(x, BLOCK // 2)
    x = halved(x, BLOCK // 4)
    x = halved(x, BLOCK // 8)
    x = halved(x, BLOCK // 16)
    x = halved(x, BLOCK // 32)
    x = halved(x, BLOCK // 64)
    tl.static_assert(UNIT_ELEMENTS == 128)
    return x


@triton.jit
def whole_sum(x, N: tl.constexpr):
    """[N] to one number; N is GROUP or SEATS."""
    if N == GROUP:
        x = halved(x, N)
        x = halved(x, N // 2)
    tl.static_assert(GROUP == 4 * SEATS)
    x = halved(x, SEATS)
    x = halved(x, SEATS // 2)
    x = halved(x, SEATS // 4)
    x = halved(x, SEATS // 8)
    x = halved(x, SEATS // 16)
    x = halved(x, SEATS // 32)
    x = halved(x, SEATS // 64)
    x = halved(x, SEATS // 128)
    return tl.sum(x)  # of one element


@triton.jit
def negative_zeros(x):
    """Which elements are exactly -0.0."""
    if x.dtype == tl.float64:
        found = x.to(tl.int64, bitcast=True) == -0x8000000000000000
    else:
        found = x.to(tl.int32, bitcast=True) == -0x80000000
    return found


@triton.jit
def negated_where(x, condition):
    """Zeros that are -0.0 where `condition` holds: added up, they stay -0.0 only among themselves."""
    if x.dtype == tl.float64:
        zero = tl.full([], -0x8000000000000000, tl.int64).to(tl.float64, bitcast=True)
    else:
        zero = tl.full([], -0x80000000, tl.int32).to(tl.float32, bitcast=True)
    return tl.where(condition, zero, x)


@triton.jit
def program_tiles(tiles):
    """First and last + 1 of this program's tiles: each has as many as any other, or one more."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    few, more = tiles // programs, tiles % programs
    first = program * few + tl.minimum(program, more)
    return first, first + few + tl.where(program < more, 1, 0)


@triton.jit
def store_units(squares_ptr, first, sums, length, BLOCK: tl.constexpr):
    """Sums of the units of a tile, from unit `first` on; an empty tile has one."""
    unit = tl.arange(0, BLOCK // UNIT_ELEMENTS)
    count = tl.maximum((length + UNIT_ELEMENTS - 1) // UNIT_ELEMENTS, 1)
    tl.store(squares_ptr + first + unit, sums, mask=unit < count)


@triton.jit
def variable_sum(units_ptr, first, last):
    """The units of a variable, in float64."""
    lane = tl.arange(0, GROUP)
    total = tl.zeros([GROUP], tl.float64)
    for begin in range(first, last, GROUP):
        units = tl.load(units_ptr + begin + lane, mask=begin + lane < last, other=0.0, cache_modifier=".cg")
        total += units.to(tl.float64)
    return whole_sum(total, GROUP)


@triton.jit
def note_written(squares, real, owners_ptr, written_ptr, begin):
    """Marks the variables of a group's units that hold anything but -0.0 with the number of this launch."""
    number = tl.load(written_ptr) + 1
    owner = tl.load(owners_ptr + begin + tl.arange(0, GROUP), mask=real, other=0)
    tl.store(written_ptr + 1 + owner, tl.zeros_like(owner) + number, mask=real & ~negative_zeros(squares))


@triton.jit
def all_groups(groups_ptr, groups):
    """The sum of all groups."""
    lane = tl.arange(0, SEATS)
    total = tl.zeros([SEATS], tl.float64)
    for base in range(0, groups, SEATS):
        total += tl.load(groups_ptr + base + lane, mask=base + lane < groups, other=0.0, cache_modifier=".cg")
    return whole_sum(total, SEATS)


@triton.jit
def finish(groups_ptr, groups, sums_ptr, norm_ptr, slot):
    """Keeps the region's sum in `sums[slot]` and writes the norm so far.

    Launches of one norm run in slot order on one stream, so the last of them leaves the norm of all regions.
    """
    total = all_groups(groups_ptr, groups)
    tl.store(sums_ptr + slot, total)
    for earlier in range(slot):
        total += tl.load(sums_ptr + earlier)
    tl.store(norm_ptr, sqrt_rn(total).to(norm_ptr.dtype.element_ty))


@triton.jit
def reduce_squares(
    squares_ptr,  # [units] what the programs stored
    groups_ptr,  # [groups] float64 scratch
    arrived_ptr,  # [groups + 1] int32, zero between launches: units of each group, groups
    owners_ptr,  # [units] int32: variables; read with VIEWED
    written_ptr,  # [1 + variables] int32 in/out: number of the launch, and of the last that found each written
    sums_ptr,
    norm_ptr,
    slot,
    first,  # of the units of this program
    last,
    units,
    VIEWED: tl.constexpr,
):
    """Adds up every group that this program completes, and finishes if that was the last one."""
    groups = (units + GROUP - 1) // GROUP
    # With what a group needs hoisted out of this loop, the kernel took 48 registers instead of 32.
    for begin in tl.range(first - first % GROUP, last, GROUP, disable_licm=True):
        group = begin // GROUP
        end = tl.minimum(begin + GROUP, units)
        mine = tl.minimum(last, end) - tl.maximum(first, begin)
        # Release and acquire at device scope, and one thread arrives for all warps of a program, behind a barrier: what
        # every program stored before it arrived, the last one sees.
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + group, mine, sem="acq_rel") == end - begin - mine:
            tl.store(arrived_ptr + group, 0)
            unit = begin + tl.arange(0, GROUP)
            squares = tl.load(squares_ptr + unit, mask=unit < end, other=0.0, cache_modifier=".cg")
            # Before the sum: across it, what was loaded would take 8 registers more.
            if VIEWED:
                note_written(squares, unit < end, owners_ptr, written_ptr, begin)
            tl.store(groups_ptr + group, whole_sum(squares.to(tl.float64), GROUP))
            tl.debug_barrier()
            if tl.atomic_add(arrived_ptr + groups, 1, sem="acq_rel") == groups - 1:
                tl.store(arrived_ptr + groups, 0)
                if VIEWED:
                    tl.store(written_ptr, tl.load(written_ptr) + 1)
                finish(groups_ptr, groups, sums_ptr, norm_ptr, slot)
