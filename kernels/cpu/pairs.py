"""Two neighbors at a time, where all streams are bfloat16: a word of 32 bits is the one shifted and the other masked.

Processors widen 16 bits and narrow 32 in several steps; a pair takes one for each of its elements.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .elements import Elements
from .formats import F32, I32, cut_at_random, cut_to_nearest
from .gradients import TILE
from .memory import mark, pointer

_INDEX = ir.IntType(64)
_HIGH = 0xFFFF0000


class Pairs:
    """Access to the streams of `elements`, of which each is bfloat16; masks are for those alone.

    Indices count pairs.
    """

    def __init__(self, elements: Elements) -> None:
        self.elements = elements
        self.pair = types.UniTuple(types.float32, 2)

    def gradient_loader(self) -> Any:
        """`load(address, index) -> (a, b)`."""

        @intrinsic
        def load(typing: Any, address: Any, index: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                address, index = arguments
                word = self._load(builder, address, index, self.elements.gradient)
                return context.make_tuple(builder, self.pair, _parted(builder, word))

            return self.pair(types.int64, types.int64), generate

        return load

    def loader(self) -> Any:
        """`load(values, index, states, state index) -> (p, state, other p, other state)`."""
        elements = self.elements

        @intrinsic
        def load(typing: Any, values: Any, index: Any, states: Any, state_index: Any) -> Any:
            result = types.Tuple([types.float32, elements.states] * 2)

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                places = elements.places(builder, *arguments)
                parted = [_parted(builder, self._load(builder, *place, i)) for i, place in enumerate(places)]
                found = []
                for numbers in zip(*parted, strict=True):
                    found += [numbers[0], context.make_tuple(builder, elements.states, numbers[1:])]
                return context.make_tuple(builder, result, found)

            return result(types.int64, types.int64, elements.addresses, types.int64), generate

        return load

    def storer(self, states: range) -> Any:
        """`store(values, index, states, state index, p, state, other p, other state, draws, pair)`.

        Args:
            states: Which of these are stored; values always are.
        """
        elements = self.elements

        @intrinsic
        def store(
            typing: Any,
            values: Any,
            index: Any,
            addresses: Any,
            state_index: Any,
            p: Any,
            state: Any,
            other_p: Any,
            other_state: Any,
            drawn: Any,
            pair: Any,
        ) -> Any:
            elements.check_result(p, state)

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                p, state, other_p, other_state, drawn, pair = arguments[4:]
                sides = (p, state), (other_p, other_state)
                for i, place in enumerate(elements.places(builder, *arguments[:4])):
                    if i and i - 1 not in states:
                        continue
                    numbers = [value if i == 0 else builder.extract_value(state, i - 1) for value, state in sides]
                    low, high = self._cut(builder, i, numbers, drawn, pair)
                    word = builder.or_(builder.lshr(low, I32(16)), builder.and_(high, I32(_HIGH)))
                    instruction = builder.store(word, pointer(builder, place[0], I32, place[1]))
                    instruction.align = 2
                    mark(builder, instruction, elements.streams, i)
                return context.get_dummy_value()

            places = (types.int64, types.int64, elements.addresses, types.int64)
            return types.void(*places, p, state, other_p, other_state, types.int64, types.int64), generate

        return store

    def _cut(self, builder: Any, i: int, numbers: list[Any], drawn: Any, pair: Any) -> list[Any]:
        """Bits of which the upper half is stored."""
        draw = self.elements.draws[i]
        if draw < 0:
            return [cut_to_nearest(builder, number) for number in numbers]
        place = builder.add(pair, _INDEX(draw * TILE // 2))
        word = self._load(builder, drawn, place, self.elements.gradient + 1)
        draws = builder.and_(word, I32(0xFFFF)), builder.lshr(word, I32(16))
        return [cut_at_random(builder, number, bits) for number, bits in zip(numbers, draws, strict=True)]

    def _load(self, builder: Any, address: Any, index: Any, stream: int) -> Any:
        instruction = builder.load(pointer(builder, address, I32, index))
        instruction.align = 2
        mark(builder, instruction, self.elements.streams, stream)
        return instruction


def _parted(builder: Any, word: Any) -> list[Any]:
    """The two numbers of a word."""
    halves = builder.shl(word, I32(16)), builder.and_(word, I32(_HIGH))
    return [builder.bitcast(half, F32) for half in halves]
