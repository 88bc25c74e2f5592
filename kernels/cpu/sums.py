"""Sums and maxima of a tile in a fixed order: the same bits on every processor, however wide its vectors are.

Element i goes to lane i % 64, lane by lane in float32 (float64); then lanes are added in halves. What a tile holds is
decided by the position in the variable, so a sum depends on no launch and no thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .memory import pointer
from .primitives import bits_of

LANES = 64
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _square(builder: Any, x: Any) -> Any:
    return builder.fmul(x, x)


def _absolute(builder: Any, x: Any) -> Any:
    integer, _, _ = bits_of(x.type.element)
    whole = ir.VectorType(integer, LANES)
    mask = ir.Constant(whole, [(1 << (integer.width - 1)) - 1] * LANES)
    return builder.bitcast(builder.and_(builder.bitcast(x, whole), mask), x.type)


def _itself(builder: Any, x: Any) -> Any:
    return x


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Maximum that keeps NaN, as torch's inf-norm does."""
    wins = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
    return builder.select(wins, a, b)


def _added(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


# What is done to each element, and how the results come together. Both start from zeros.
_KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "squares": (_square, _added),
    "absolutes": (_absolute, _added),
    "plain": (_itself, _added),
    "maximum": (_absolute, _larger),
}


def reduction(kind: str, compute: Any) -> Any:
    """`reduce(address, count)` of numbers of `compute`, Numba's float32 or float64."""
    term, combine = _KINDS[kind]

    @intrinsic
    def reduce(typing: Any, address: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, count = arguments
            element = context.get_value_type(compute)
            vector = ir.VectorType(element, LANES)
            with builder.goto_entry_block():
                total, rest = builder.alloca(vector), builder.alloca(vector)
            builder.store(vector(None), total)

            def take(place: Any, align: int) -> None:
                x = builder.load(place)
                x.align = align
                builder.store(combine(builder, builder.load(total), term(builder, x)), total)

            size = context.get_abi_sizeof(element)
            whole = builder.lshr(count, _I64(LANES.bit_length() - 1))
            with cgutils.for_range(builder, whole) as loop:
                take(builder.gep(pointer(builder, address, vector), [loop.index]), size)
            left = builder.and_(count, _I64(LANES - 1))
            with builder.if_then(builder.icmp_signed("!=", left, _I64(0)), likely=False):
                builder.store(vector(None), rest)
                begin = builder.gep(pointer(builder, address, vector), [whole])
                cgutils.raw_memcpy(
                    builder,
                    builder.bitcast(rest, element.as_pointer()),
                    builder.bitcast(begin, element.as_pointer()),
                    left,
                    size,
                    align=size,
                )
                take(rest, size * LANES)
            found = builder.load(total)
            width = LANES
            while width > 1:
                width //= 2
                low = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
                high = ir.Constant(ir.VectorType(_I32, width), list(range(width, 2 * width)))
                parts = (builder.shuffle_vector(found, found, lanes) for lanes in (low, high))
                found = combine(builder, *parts)
            return builder.extract_element(found, _I32(0))

        return compute(types.int64, types.int64), generate

    return reduce
