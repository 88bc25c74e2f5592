"""Philox4x64-10 for LLVM; `kernels/triton/philox.py` says what it generates."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import pointer

_I64, _I128 = ir.IntType(64), ir.IntType(128)
ROUND_A, ROUND_B = 0xD2E7470EE14C6C93, 0xCA5A826395121157
KEY_A, KEY_B = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10


def _product(builder: Any, x: Any, factor: int) -> tuple[Any, Any]:
    """High and low half of x * factor."""
    wide = builder.mul(builder.zext(x, _I128), _I128(factor))
    return builder.trunc(builder.lshr(wide, _I128(64)), _I64), builder.trunc(wide, _I64)


def _words(builder: Any, counter: list[Any], k0: Any, k1: Any) -> list[Any]:
    """The four words of a counter."""
    c0, c1, c2, c3 = counter
    for _ in range(ROUNDS):
        high_a, low_a = _product(builder, c0, ROUND_A)
        high_b, low_b = _product(builder, c2, ROUND_B)
        c0, c1 = builder.xor(builder.xor(high_b, c1), k0), low_b
        c2, c3 = builder.xor(builder.xor(high_a, c3), k1), low_a
        k0, k1 = builder.add(k0, _I64(KEY_A)), builder.add(k1, _I64(KEY_B))
    return [c0, c1, c2, c3]


@intrinsic
def write_words(typing: Any, target: Any, seed: Any, key: Any, block: Any) -> Any:
    """Writes the four words of a block, int64 numbers all, to `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, k0, k1, block = arguments
        counter = [builder.add(block, _I64(1)), _I64(0), _I64(0), _I64(0)]
        for i, word in enumerate(_words(builder, counter, k0, k1)):
            builder.store(word, pointer(builder, target, _I64, _I64(i)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def write_draws(typing: Any, target: Any, seed: Any, key: Any, block: Any, step: Any, purpose: Any, which: Any) -> Any:
    """The same of the counter (block + 1, step, purpose, which): 16 numbers of 16 bits, in their order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, k0, k1, block, *rest = arguments
        counter = [builder.add(block, _I64(1)), *rest]
        for i, word in enumerate(_words(builder, counter, k0, k1)):
            builder.store(word, pointer(builder, target, _I64, _I64(i)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate


_I32, _F32 = ir.IntType(32), ir.FloatType()


def _of_half(result: Any, convert: Any) -> Any:
    """`read(words, i)`: numbers that are made of a 32-bit half of a word, the low half first."""

    @intrinsic
    def read(typing: Any, words: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            made = convert(builder, builder.load(pointer(builder, arguments[0], _I32, arguments[1])))
            return context.make_tuple(builder, result, made) if isinstance(made, list) else made

        return result(types.int64, types.int64), generate

    return read


def _turn(builder: Any, bits: Any) -> list[Any]:
    swap = builder.and_(builder.lshr(bits, _I32(30)), _I32(1))
    sign = builder.or_(builder.ashr(bits, _I32(31)), _I32(1))
    turn = builder.ashr(builder.shl(bits, _I32(2)), _I32(2))
    return [builder.sitofp(x, _F32) for x in (turn, swap, sign)]


# As float32: the half as an unsigned number, its complement, its upper 24 bits, and what `normal_pair` turns by.
unsigned = _of_half(types.float32, lambda builder, x: builder.uitofp(x, _F32))
complement = _of_half(types.float32, lambda builder, x: builder.uitofp(builder.not_(x), _F32))
upper_bits = _of_half(types.float32, lambda builder, x: builder.uitofp(builder.lshr(x, _I32(8)), _F32))
quarter_turn = _of_half(types.UniTuple(types.float32, 3), _turn)
