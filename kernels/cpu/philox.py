"""Philox4x64-10 and Philox4x32-7 for LLVM; `kernels/triton/philox.py` says what they generate."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import native, wide_vectors
from .memory import address_of, caller, pointer

_I64, _I128, _LANE = ir.IntType(64), ir.IntType(128), ir.IntType(32)
ROUND_A, ROUND_B = 0xD2E7470EE14C6C93, 0xCA5A826395121157
KEY_A, KEY_B = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
SHORT_A, SHORT_B = 0xD2511F53, 0xCD9E8D57
SHORT_KEY_A, SHORT_KEY_B = 0x9E3779B9, 0xBB67AE85
ROUNDS, SHORT_ROUNDS = 10, 7

BLOCK = 32
"""Bytes of a block: four words."""

ABREAST = 16
"""Blocks that are made at once, in vectors."""


def _splat(builder: Any, x: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(_I64, ABREAST), ir.Undefined)
    first = builder.insert_element(undefined, x, _LANE(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_LANE, ABREAST), [0] * ABREAST))


def _number(like: Any, number: int) -> Any:
    """A constant, once or in every lane."""
    return like(number) if like == _I64 else ir.Constant(like, [number] * ABREAST)


def _product(builder: Any, x: Any, factor: int) -> tuple[Any, Any]:
    """High and low half of x * factor."""
    if x.type == _I64:
        wide = builder.mul(builder.zext(x, _I128), _I128(factor))
        return builder.trunc(builder.lshr(wide, _I128(64)), _I64), builder.trunc(wide, _I64)
    # Processors multiply lanes of 32 bits only; no sum below carries.
    mask, half = _number(x.type, 0xFFFFFFFF), _number(x.type, 32)
    upper, lower = _number(x.type, factor >> 32), _number(x.type, factor & 0xFFFFFFFF)
    x_lower, x_upper = builder.and_(x, mask), builder.lshr(x, half)
    low = builder.mul(x_lower, lower)
    inner = builder.add(builder.mul(x_upper, lower), builder.lshr(low, half))
    outer = builder.add(builder.mul(x_lower, upper), builder.and_(inner, mask))
    high = builder.add(builder.mul(x_upper, upper), builder.lshr(inner, half))
    return builder.add(high, builder.lshr(outer, half)), builder.or_(builder.shl(outer, half), builder.and_(low, mask))


def _words(builder: Any, counter: list[Any], k0: Any, k1: Any) -> list[Any]:
    """The four words of a counter, or of as many counters as vectors have lanes."""
    c0, c1, c2, c3 = counter
    for _ in range(ROUNDS):
        high_a, low_a = _product(builder, c0, ROUND_A)
        high_b, low_b = _product(builder, c2, ROUND_B)
        c0, c1 = builder.xor(builder.xor(high_b, c1), k0), low_b
        c2, c3 = builder.xor(builder.xor(high_a, c3), k1), low_a
        k0, k1 = builder.add(k0, _number(k0.type, KEY_A)), builder.add(k1, _number(k1.type, KEY_B))
    return [c0, c1, c2, c3]


_ONE = [types.int64] * 7


@intrinsic
def _write_one(typing: Any, target: Any, seed: Any, key: Any, block: Any, second: Any, third: Any, fourth: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, k0, k1, block, *rest = arguments
        for i, word in enumerate(_words(builder, [builder.add(block, _I64(1)), *rest], k0, k1)):
            builder.store(word, pointer(builder, target, _I64, _I64(i)))
        return context.get_dummy_value()

    return types.void(*_ONE), generate


@intrinsic
def _write_abreast(
    typing: Any, target: Any, seed: Any, key: Any, block: Any, second: Any, third: Any, fourth: Any
) -> Any:
    def lanes(*numbers: int) -> Any:
        return ir.Constant(ir.VectorType(_LANE, len(numbers)), list(numbers))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, k0, k1, block, *rest = (arguments[0], *(_splat(builder, x) for x in arguments[1:]))
        counts = ir.Constant(block.type, list(range(1, ABREAST + 1)))
        words = _words(builder, [builder.add(block, counts), *rest], k0, k1)
        ahead, behind = (builder.shuffle_vector(*pair, lanes(*range(2 * ABREAST))) for pair in (words[:2], words[2:]))
        # From a vector for each word of a block to one block after the other.
        order = lanes(*(word * ABREAST + block for block in range(ABREAST) for word in range(4)))
        found = builder.shuffle_vector(ahead, behind, order)
        builder.store(found, pointer(builder, target, found.type), align=8)
        return context.get_dummy_value()

    return types.void(*_ONE), generate


_ARGUMENTS = [types.int64] * 8
write_blocks = caller(_ARGUMENTS)
"""`write_blocks(writer(), target, count, seed, key, block, second, third, fourth)`."""


@functools.cache
def block_writer() -> Any:
    """`writer()`: the address of `(target, count, seed, key, block, second, third, fourth)`.

    It writes blocks one behind the other, those of the counters (block + 1, second, third, fourth), (block + 2, ...):
    32 bytes each.

    A function of its own: compiled into everything that draws, it would take longer than the rest.
    """

    def write(target: Any, count: Any, seed: Any, key: Any, block: Any, second: Any, third: Any, fourth: Any) -> None:
        wide_vectors()
        done = 0
        while done + ABREAST <= count:
            _write_abreast(target + BLOCK * done, seed, key, block + done, second, third, fourth)
            done += ABREAST
        while done < count:
            _write_one(target + BLOCK * done, seed, key, block + done, second, third, fourth)
            done += 1

    return address_of(native(write, types.void(*_ARGUMENTS)).symbol)


def _short_words(builder: Any, counter: list[Any], k0: Any, k1: Any) -> list[Any]:
    """Of Philox4x32: in the lower halves of 64-bit lanes; what stands above is no part of them.

    A lane multiplies two lower halves and has all of the product: a round is two multiplications, and nothing to carry.
    """
    mask, half = _number(k0.type, 0xFFFFFFFF), _number(k0.type, 32)
    c0, c1, c2, c3 = counter
    for _ in range(SHORT_ROUNDS):
        a = builder.mul(builder.and_(c0, mask), _number(k0.type, SHORT_A))
        b = builder.mul(builder.and_(c2, mask), _number(k0.type, SHORT_B))
        c0, c1 = builder.xor(builder.xor(builder.lshr(b, half), c1), k0), b
        c2, c3 = builder.xor(builder.xor(builder.lshr(a, half), c3), k1), a
        k0, k1 = builder.add(k0, _number(k0.type, SHORT_KEY_A)), builder.add(k1, _number(k1.type, SHORT_KEY_B))
    return [c0, c1, c2, c3]


_SHORT = [types.int64] * 5


@intrinsic
def _write_short(typing: Any, target: Any, key: Any, block: Any, third: Any, fourth: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, key, block, third, fourth = (arguments[0], *(_splat(builder, x) for x in arguments[1:]))
        mask, half = _number(key.type, 0xFFFFFFFF), _number(key.type, 32)
        block = builder.add(block, ir.Constant(block.type, list(range(ABREAST))))
        counter = [block, builder.lshr(block, half), third, fourth]
        words = _short_words(builder, counter, key, builder.lshr(key, half))
        pairs = [builder.or_(builder.and_(low, mask), builder.shl(high, half)) for low, high in (words[:2], words[2:])]
        order = [pair * ABREAST + block for block in range(ABREAST) for pair in range(2)]
        found = builder.shuffle_vector(*pairs, ir.Constant(ir.VectorType(_LANE, 2 * ABREAST), order))
        builder.store(found, pointer(builder, target, found.type), align=8)
        return context.get_dummy_value()

    return types.void(*_SHORT), generate


SHORT_BLOCK = 16
"""Bytes of a block of Philox4x32."""

_SHORT_ARGUMENTS = [types.int64] * 6
write_short_blocks = caller(_SHORT_ARGUMENTS)
"""`write_short_blocks(writer(), target, count, key, block, third, fourth)`."""


@functools.cache
def short_block_writer() -> Any:
    """`writer()`: the address of `(target, count, key, block, third, fourth)`.

    It writes blocks of Philox4x32 one behind the other, those of the counters (block, third, fourth),
    (block + 1, third, fourth), ...: 16 bytes each. A block is the first two words of its counter. `ABREAST` are written
    at a time, so there must be room for a multiple of those.
    """

    def write(target: Any, count: Any, key: Any, block: Any, third: Any, fourth: Any) -> None:
        wide_vectors()
        for done in range(0, count, ABREAST):
            _write_short(target + SHORT_BLOCK * done, key, block + done, third, fourth)

    return address_of(native(write, types.void(*_SHORT_ARGUMENTS)).symbol)


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
