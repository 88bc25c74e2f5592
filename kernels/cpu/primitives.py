"""The primitives of `kernels.lang` for LLVM: each a single IEEE operation, a choice, or bits."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def bits_of(type_: Any) -> tuple[Any, int, int]:
    """Integer type, length of the mantissa and bias of a float32 or float64 of LLVM."""
    return (I64, 52, 1023) if isinstance(type_, ir.DoubleType) else (I32, 23, 127)


def _floating(*numbers: Any) -> Any:
    """The common dtype of what a primitive is called with."""
    for number in numbers:
        if number not in (types.float32, types.float64):
            raise TypingError(f"a rule computes with float32 or float64 numbers, not with {number}")
    return types.float64 if types.float64 in numbers else types.float32


@intrinsic
def sqrt_rn(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = arguments[0].type
        function = builder.module.declare_intrinsic("llvm.sqrt", [type_])
        return builder.call(function, arguments)

    return _floating(x)(x), generate


@intrinsic
def div_rn(typing: Any, x: Any, y: Any) -> Any:
    result = _floating(x, y)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (context.cast(builder, a, t, result) for a, t in zip(arguments, signature.args, strict=True))
        return builder.fdiv(left, right)

    return result(x, y), generate


@intrinsic
def where(typing: Any, condition: Any, x: Any, y: Any) -> Any:
    """A choice without a branch: loops keep their vectors."""
    result = _floating(x, y)
    if condition != types.boolean:
        raise TypingError(f"where chooses by a comparison, not by {condition}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (context.cast(builder, a, t, result) for a, t in zip(arguments[1:], (x, y), strict=True))
        return builder.select(arguments[0], left, right)

    return result(condition, x, y), generate


@intrinsic
def absolute(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.fabs", [arguments[0].type])
        return builder.call(function, arguments)

    return _floating(x)(x), generate


@intrinsic
def nearest(typing: Any, x: Any) -> Any:
    """Adding a number whose last bit is 1 rounds to integers; no instruction for it need exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, length, _ = bits_of(arguments[0].type)
        magic = ir.Constant(arguments[0].type, 1.5 * 2.0**length)
        return builder.fsub(builder.fadd(arguments[0], magic), magic)

    return _floating(x)(x), generate


@intrinsic
def power_of_two(typing: Any, n: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = arguments[0].type
        integer, length, bias = bits_of(type_)
        low, high = ir.Constant(type_, 1.0 - bias), ir.Constant(type_, float(bias))
        # An ordered comparison: NaN becomes the upper end, and every conversion below is one of a small number.
        kept = builder.select(builder.fcmp_ordered("<", arguments[0], high), arguments[0], high)
        kept = builder.select(builder.fcmp_ordered(">", kept, low), kept, low)
        exponent = builder.add(builder.fptosi(kept, integer), integer(bias))
        return builder.bitcast(builder.shl(exponent, integer(length)), type_)

    return _floating(n)(n), generate


@intrinsic
def split_exponent(typing: Any, x: Any) -> Any:
    result = _floating(x)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = arguments[0].type
        integer, length, _ = bits_of(type_)
        half = integer(0x3FE6A09E667F3BCD if length == 52 else 0x3F3504F3)
        bits = builder.sub(builder.bitcast(arguments[0], integer), half)
        mantissa = builder.add(builder.and_(bits, integer((1 << length) - 1)), half)
        exponent = builder.sitofp(builder.ashr(bits, integer(length)), type_)
        return context.make_tuple(builder, signature.return_type, (builder.bitcast(mantissa, type_), exponent))

    return types.UniTuple(result, 2)(x), generate
