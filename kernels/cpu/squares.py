"""The sum of squares of a launch: units in the precision of the arithmetic, all of them in float64, in a fixed order.

The order is that of `kernels/triton/squares.py`: neighbors are added, then neighbors of the results, and so on, within
a unit of 128 elements and within a group of 1,024 units. So a norm, and with it a clipped step, has the same bits with
both compilers, and for any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..launches import Tables
from ..segments import UNIT, unit_table
from .compile import DTYPES, compiled
from .memory import pointer, read_double, read_float, stack, write_double, write_float

GROUP = 1_024
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES = 8 * GROUP


@dataclass(frozen=True)
class Units:
    """The units of a plan.

    Attributes:
        firsts: int32 [tiles + 1]: first unit of each tile.
        squares: [units], scratch of its launches.
    """

    firsts: npt.NDArray[np.int32]
    squares: npt.NDArray[Any]

    @cached_property
    def addresses(self) -> tuple[int, int]:
        return self.firsts.ctypes.data, self.squares.ctypes.data


def units_of(tables: Tables) -> Units:
    firsts = unit_table(tables.segments, tables.block)
    return Units(firsts, np.empty(firsts[-1], dtype=DTYPES[tables.compute_dtype]))


def halved(builder: Any, x: Any) -> Any:
    """A vector of n to one of n / 2: the sums of neighbors."""
    half = x.type.count // 2
    even = ir.Constant(ir.VectorType(_I32, half), [2 * i for i in range(half)])
    odd = ir.Constant(ir.VectorType(_I32, half), [2 * i + 1 for i in range(half)])
    return builder.fadd(builder.shuffle_vector(x, x, even), builder.shuffle_vector(x, x, odd))


def unit_squares(compute: Any) -> Any:
    """`store(address, count, out)`: the sums of squares of the units of a tile; one, of zero, of an empty tile."""
    return unit_sums(compute, True)


def unit_sums(compute: Any, squared: bool = False) -> Any:
    """The same of the numbers themselves, if not `squared`."""

    @intrinsic
    def store(typing: Any, address: Any, count: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, count, out = arguments
            element = context.get_value_type(compute)
            vector, size = ir.VectorType(element, UNIT), context.get_abi_sizeof(element)
            with builder.goto_entry_block():
                rest = builder.alloca(vector)

            def take(place: Any, unit: Any) -> None:
                x = builder.load(place)
                x.align = size
                if squared:
                    x = builder.fmul(x, x)
                while x.type.count > 1:
                    x = halved(builder, x)
                builder.store(builder.extract_element(x, _I32(0)), pointer(builder, out, element, unit))

            whole = builder.lshr(count, _I64(UNIT.bit_length() - 1))
            with cgutils.for_range(builder, whole) as loop:
                take(builder.gep(pointer(builder, address, vector), [loop.index]), loop.index)
            left = builder.and_(count, _I64(UNIT - 1))
            ragged = builder.or_(builder.icmp_signed("!=", left, _I64(0)), builder.icmp_signed("==", count, _I64(0)))
            with builder.if_then(ragged, likely=False):
                builder.store(vector(None), rest)
                begin = builder.gep(pointer(builder, address, vector), [whole])
                single = element.as_pointer()
                target, source = builder.bitcast(rest, single), builder.bitcast(begin, single)
                cgutils.raw_memcpy(builder, target, source, left, size, align=size)
                take(rest, whole)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return store


def written_finder(compute: Any) -> Any:
    """`found(address, count)`: whether any of the numbers of `compute` is another one than -0.0."""
    width = 64 if compute == types.float64 else 32
    word, size = ir.IntType(width), width // 8
    lanes = 64

    @intrinsic
    def bits(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(word, lanes)
            x = builder.load(builder.gep(pointer(builder, arguments[0], vector), [arguments[1]]))
            x.align = size
            x = builder.xor(x, ir.Constant(vector, [1 << (width - 1)] * lanes))
            found = builder.icmp_unsigned("!=", x, vector(None))
            return builder.icmp_unsigned("!=", builder.bitcast(found, ir.IntType(lanes)), ir.IntType(lanes)(0))

        return types.boolean(types.int64, types.int64), generate

    @intrinsic
    def bit(typing: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x = builder.load(pointer(builder, arguments[0], word, arguments[1]))
            return builder.icmp_unsigned("!=", x, word(1 << (width - 1)))

        return types.boolean(types.int64, types.int64), generate

    @compiled
    def found(address: Any, count: Any) -> Any:
        for block in range(count // lanes):
            if bits(address, block):
                return True
        rest = count // lanes * lanes
        while rest < count and not bit(address, rest):
            rest += 1
        return rest < count

    return found


@compiled
def lanes_for(count: Any) -> Any:
    """How many of `GROUP` lanes are to be added where the first `count` alone hold another number than 0.

    A power of two: what the others would add is +0.0, which changes no sum of numbers of which none is -0.0.
    """
    lanes = 1
    while lanes < min(count, GROUP):
        lanes *= 2
    return lanes


@compiled
def whole_sum(memory: Any, lanes: Any) -> Any:
    """The sum of the first `lanes` float64 numbers, a power of two, which are overwritten."""
    half = lanes // 2
    while half > 0:
        for i in range(half):
            write_double(memory, i, read_double(memory, 2 * i) + read_double(memory, 2 * i + 1))
        half //= 2
    return read_double(memory, 0)


def total_of(dtype: type) -> Any:
    """`total(squares, units)`: the sum of all units."""
    read, size, room = read_double if dtype is np.float64 else read_float, np.dtype(dtype).itemsize, stack(2 * _BYTES)

    @compiled
    def total(squares: Any, units: Any) -> Any:
        lanes = room()
        group = lanes + _BYTES
        groups = (units + GROUP - 1) // GROUP
        lane_count = lanes_for(groups)
        for i in range(lane_count):
            write_double(lanes, i, 0.0)
        for k in range(groups):
            begin = squares + k * GROUP * size
            count = min(GROUP, units - k * GROUP)
            for i in range(count):
                write_double(group, i, np.float64(read(begin, i)))
            unit_count = lanes_for(count)
            for i in range(count, unit_count):
                write_double(group, i, 0.0)
            write_double(lanes, k % GROUP, read_double(lanes, k % GROUP) + whole_sum(group, unit_count))
        return whole_sum(lanes, lane_count)

    return total


def variable_sum(dtype: type) -> Any:
    """`total(units, count)`: the units of a variable, unit i in lane i % `GROUP`, lanes by neighbors."""
    read, room = read_double if dtype is np.float64 else read_float, stack(_BYTES)

    @compiled
    def total(units: Any, count: Any) -> Any:
        lanes, lane_count = room(), lanes_for(count)
        for i in range(lane_count):
            write_double(lanes, i, 0.0)
        for i in range(count):
            write_double(lanes, i % GROUP, read_double(lanes, i % GROUP) + np.float64(read(units, i)))
        return whole_sum(lanes, lane_count)

    return total


def norm_writer(word: Any, dtype: type) -> Any:
    """`write(record)`: keeps the region's sum in `sums[slot]` and writes the norm of the regions so far."""
    total_squares = total_of(dtype)

    @compiled
    def write(record: Any) -> None:
        sums, slot = word(record, "sums"), word(record, "slot")
        total = total_squares(word(record, "squares"), word(record, "units"))
        write_double(sums, slot, total)
        for earlier in range(slot):
            total += read_double(sums, earlier)
        if word(record, "norm_is_double") != 0:
            write_double(word(record, "norm"), 0, math.sqrt(total))
        else:
            write_float(word(record, "norm"), 0, math.sqrt(total))

    return write
