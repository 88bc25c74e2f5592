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


def reader(rule: Rule, dtype: type, measuring: bool = False) -> Any:
    """`read(row, step, fresh, own_table, slot, kept, sums)`: the rule's `hyper`, in the precision of the arithmetic.

    What the variable keeps goes to `kept`, float32 in a row: all tiles of a variable put the same there.

    Args:
        measuring: For the rule's statistics, which know no sums.
    """
    number = float_type(dtype)
    fields = rule.measured if measuring else rule.given
    result = named(fields.type, number)
    if not rule.wide:
        plain = tuple_reader(result, number)

        @compiled
        def read_plain(row: Any, step: Any, fresh: Any, own_table: Any, slot: Any, kept: Any, sums: Any) -> Any:
            return plain(row)

        return read_plain
    of_group = tuple_reader(uniform(types.float64, len(rule.numbers._fields)), types.float64)
    of_variable, join = _own_reader(rule.own_starts), joiner()
    first, second = _stage(rule, "known"), _stage(rule, "summed")
    measured = rule.statistics is not None and not measuring
    of_sums = tuple_reader(uniform(types.float64, len(rule.statistics.names) if rule.statistics else 0), types.float64)
    keep, keeps, give = _keeper(rule.kept), bool(rule.own), picker(result, fields.picks)

    @compiled
    def read(row: Any, step: Any, fresh: Any, own_table: Any, slot: Any, kept: Any, sums: Any) -> Any:
        at = np.float64(step)
        numbers = join(of_group(row), of_variable(row, own_table, slot, fresh))
        results = first(numbers, at)
        if keeps:
            keep(kept, results)
        gathered = join(numbers, results)
        if measured:
            with_sums = join(gathered, of_sums(sums))
            return give(join(with_sums, second(with_sums, at)), ())
        return give(gathered, ())

    return read


def _stage(rule: Rule, what: str) -> Any:
    """`run(numbers, step)`: the results of the rule's scalars, or of those of its statistics; () without any."""
    fields = rule.known if what == "known" else rule.summed
    scalars = rule.scalars
    if what == "summed":
        scalars = None if rule.statistics is None else rule.statistics.scalars
    if scalars is None:

        @compiled
        def nothing(numbers: Any, step: Any) -> Any:
            return ()

        return nothing
    know, function = picker(named(fields.type, types.float64), fields.picks), twin(scalars.function, np.float64)

    @compiled
    def run(numbers: Any, step: Any) -> Any:
        return function(know(numbers, ()), step)

    return run


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


def starter(rule: Rule, starts: Sequence[int], dtype: type) -> tuple[Any, Any]:
    """`read(row)` and `start(fresh, p, state, first)`: states with their initial values where a variable is new.

    Args:
        starts: As `Rule.starts`.
    """
    number, wide = float_type(dtype), types.float64 if rule.wide else float_type(dtype)
    places = [start for start in starts if start >= 0]
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
            for i, place in enumerate(starts):
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
