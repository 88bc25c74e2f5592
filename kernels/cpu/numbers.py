"""The numbers of a tile: what its rule gets as `hyper`, and what its variable keeps for the next step.

A rule without stages reads its group's numbers in the precision of the arithmetic. With scalars, they are float64, and
so is all that is made of them, once a tile; what the elements see is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from ..rules import Rule
from .compile import compiled, float_type, twin
from .memory import pointer

_F32, _F64, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(64)

ARGUMENTS = ("row", "step", "fresh", "own_table", "slot", "kept")
"""What `reader` wants: addresses of a group's row, of the addresses of the variables' scalars, and of where new ones
go; the number of the step, and whether it is the variable's first."""


def _load(builder: Any, address: Any, type_: Any, index: Any) -> Any:
    return builder.load(pointer(builder, address, type_, _I64(index) if isinstance(index, int) else index))


def tuple_reader(result: Any, number: Any) -> Any:
    """`read(address)`: numbers in a row, as a tuple or a named one."""

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            type_ = context.get_value_type(number)
            found = [_load(builder, arguments[0], type_, i) for i in range(len(result))]
            return context.make_tuple(builder, result, found)

        return result(types.int64), generate

    return read


def named(numbers: Any, number: Any) -> Any:
    """The type of a rule's named tuple."""
    return types.NamedUniTuple(number, len(numbers._fields), numbers)


def uniform(number: Any, count: int) -> Any:
    return types.UniTuple(number, count) if count else types.Tuple(())


def picker(result: Any, picks: Sequence[int]) -> Any:
    """`pick(numbers, more)`: some of the numbers of two tuples, as a named one of maybe another precision."""

    @intrinsic
    def pick(typing: Any, numbers: Any, more: Any) -> Any:
        if not isinstance(more, types.BaseTuple) or len(numbers) + len(more) <= max(picks, default=-1):
            raise TypingError(f"the rule's scalars return {more}, and not a number for each of their names")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = []
            for place in picks:
                whole, type_, i = (arguments[0], numbers, place) if place < len(numbers) else (arguments[1], more, 0)
                i = place if place < len(numbers) else place - len(numbers)
                found.append(context.cast(builder, builder.extract_value(whole, i), type_[i], result.dtype))
            return context.make_tuple(builder, result, found)

        return result(numbers, more), generate

    return pick


def _own_reader(starts: Sequence[int]) -> Any:
    """`read(row, table, slot, fresh)`: the scalars of a variable, float64."""
    result = uniform(types.float64, len(starts))

    @intrinsic
    def read(typing: Any, row: Any, table: Any, slot: Any, fresh: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, table, slot, fresh = arguments
            found = []
            for i, start in enumerate(starts):
                stream = _load(builder, table, _I64, i)
                x = builder.fpext(_load(builder, stream, _F32, slot), _F64)
                if start >= 0:
                    first = builder.icmp_signed("!=", fresh, _I64(0))
                    x = builder.select(first, _load(builder, row, _F64, start), x)
                found.append(x)
            return context.make_tuple(builder, result, found)

        return result(types.int64, types.int64, types.int64, types.int64), generate

    return read


def _keeper(kept: Sequence[int]) -> Any:
    """`keep(address, results)`: puts what the variable keeps into float32 numbers in a row."""

    @intrinsic
    def keep(typing: Any, address: Any, results: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            for i, place in enumerate(kept):
                x = builder.fptrunc(builder.extract_value(arguments[1], place), _F32)
                builder.store(x, pointer(builder, arguments[0], _F32, _I64(i)))
            return context.get_dummy_value()

        return types.void(types.int64, results), generate

    return keep


def reader(rule: Rule, dtype: type) -> Any:
    """`read(row, step, fresh, own_table, slot, kept)`: the rule's `hyper`, in the precision of the arithmetic.

    What the variable keeps goes to `kept`, float32 in a row: all tiles of a variable put the same there.
    """
    number = float_type(dtype)
    result = named(rule.given.type, number)
    if rule.scalars is None:
        plain = tuple_reader(result, number)

        @compiled
        def read_plain(row: Any, step: Any, fresh: Any, own_table: Any, slot: Any, kept: Any) -> Any:
            return plain(row)

        return read_plain
    of_group = tuple_reader(uniform(types.float64, len(rule.numbers._fields)), types.float64)
    of_variable = _own_reader(rule.own_starts)
    know = picker(named(rule.known.type, types.float64), rule.known.picks)
    give, function = picker(result, rule.given.picks), twin(rule.scalars.function, np.float64)
    join, keep, keeps = joiner(), _keeper(rule.kept), bool(rule.own)

    @compiled
    def read(row: Any, step: Any, fresh: Any, own_table: Any, slot: Any, kept: Any) -> Any:
        numbers, own = of_group(row), of_variable(row, own_table, slot, fresh)
        results = function(know(numbers, own), np.float64(step))
        if keeps:
            keep(kept, results)
        return give(join(numbers, own), results)

    return read


def joiner() -> Any:
    """`join(a, b)`: two tuples in a row."""

    @intrinsic
    def join(typing: Any, a: Any, b: Any) -> Any:
        result = types.Tuple([*a, *b])

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            parts = [builder.extract_value(x, i) for x, t in zip(arguments, (a, b), strict=True) for i in range(len(t))]
            return context.make_tuple(builder, result, parts)

        return result(a, b), generate

    return join


def starter(rule: Rule, dtype: type) -> tuple[Any, Any]:
    """`read(row)` and `start(fresh, p, state, first)`: states with their initial values where a variable is new."""
    number, wide = float_type(dtype), types.float64 if rule.wide else float_type(dtype)
    places = [start for start in rule.starts if start >= 0]
    first = uniform(number, len(places))

    @intrinsic
    def read(typing: Any, row: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            type_ = context.get_value_type(wide)
            found = [_load(builder, arguments[0], type_, place) for place in places]
            found = [context.cast(builder, x, wide, number) for x in found]
            return context.make_tuple(builder, first, found)

        return first(types.int64), generate

    @intrinsic
    def start(typing: Any, fresh: Any, p: Any, state: Any, firsts: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            new, value, old, begin = arguments
            found, taken = [], 0
            for i, place in enumerate(rule.starts):
                x = builder.extract_value(old, i)
                if place == -2:
                    x = builder.select(new, value, x)
                elif place >= 0:
                    x = builder.select(new, builder.extract_value(begin, taken), x)
                    taken += 1
                found.append(x)
            return context.make_tuple(builder, state, found)

        return state(types.boolean, p, state, firsts), generate

    return read, start
