"""One element of a step: a value with its states, loaded as they are stored, widened, and stored again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from .formats import FORMATS, I16, Format, round_at_random
from .gradients import TILE
from .memory import load_raw, mark, pointer, store_raw

_RAW = {"float32": types.float32, "float64": types.float64}
_INDEX = ir.IntType(64)


class Elements:
    """Access to a value stream and its state streams, which do not overlap, nor do the gradients, which come last.

    Args:
        formats: Of the values, then of each state.
        compute: Numba's float32 or float64.
        masked: Whether `store` keeps what was loaded where it is told to.
        draws: For each state, which of the draws of a tile rounds it at random, or -1.
        value_draw: The same of values.
        terms: Rows of numbers that are written beside, for sums.
    """

    def __init__(
        self,
        formats: list[Format],
        compute: Any,
        masked: bool,
        draws: Sequence[int] = (),
        terms: int = 0,
        value_draw: int = -1,
    ) -> None:
        self.formats, self.compute, self.masked = formats, compute, masked
        self.count = len(formats) - 1
        self.draws = (value_draw, *(draws or [-1] * self.count))
        # Values and states, gradients, draws, and terms.
        self.gradient, self.streams = len(formats), len(formats) + 2 + terms
        self.stored = types.Tuple([_RAW.get(format_.name, types.int16) for format_ in formats])
        self.addresses = types.UniTuple(types.int64, self.count) if self.count else types.Tuple(())
        self.states = types.UniTuple(compute, self.count) if self.count else types.Tuple(())

    def address_reader(self) -> Any:
        """`read(table)`: the addresses of the states."""
        count, result = self.count, self.addresses

        @intrinsic
        def read(typing: Any, table: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                base = pointer(builder, arguments[0], _INDEX)
                found = [builder.load(builder.gep(base, [_INDEX(i)])) for i in range(count)]
                return context.make_tuple(builder, result, found)

            return result(types.int64), generate

        return read

    def loader(self) -> Any:
        """`load(values, index, states, state index) -> stored`."""

        @intrinsic
        def load(typing: Any, values: Any, index: Any, states: Any, state_index: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                places = self.places(builder, *arguments)
                raws = [
                    load_raw(builder, format_, *place, self.streams, i)
                    for i, (format_, place) in enumerate(zip(self.formats, places, strict=True))
                ]
                return context.make_tuple(builder, self.stored, raws)

            return self.stored(types.int64, types.int64, self.addresses, types.int64), generate

        return load

    def widener(self) -> Any:
        """`widen(stored) -> (p, state)`."""

        @intrinsic
        def widen(typing: Any, stored: Any) -> Any:
            result = types.Tuple([self.compute, self.states])

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                type_ = context.get_value_type(self.compute)
                wide = [
                    format_.widen(builder, builder.extract_value(arguments[0], i), type_)
                    for i, format_ in enumerate(self.formats)
                ]
                states = context.make_tuple(builder, self.states, wide[1:])
                return context.make_tuple(builder, result, [wide[0], states])

            return result(self.stored), generate

        return widen

    def keeper(self, starts: Sequence[int]) -> Any:
        """`keep(fresh, state, stored) -> stored`: what masked elements keep, of the states as they begin.

        An initial value may never have been stored.

        Args:
            starts: As `Rule.starts`.
        """

        @intrinsic
        def keep(typing: Any, fresh: Any, state: Any, stored: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                new, begun, old = arguments
                found = [builder.extract_value(old, i) for i in range(self.count + 1)]
                for i, start in enumerate(starts):
                    if start != -1:
                        first = self.formats[1 + i].round(builder, builder.extract_value(begun, i))
                        found[1 + i] = builder.select(new, first, found[1 + i])
                return context.make_tuple(builder, self.stored, found)

            return self.stored(types.boolean, state, stored), generate

        return keep

    def storer(self, values: bool = True, states: range | None = None) -> Any:
        """`store(values, index, states, state index, p, state, stored, kept, draws, lane)`: rounds what it stores.

        Where `kept`, it stores what was there. `draws` is the address of those of a tile, `lane` the place in it.

        Args:
            values: Whether these are stored, or stay as they are.
            states: Which of these are; all if None.
        """

        def chosen(i: int) -> bool:
            return states is None or i - 1 in states

        @intrinsic
        def store(
            typing: Any,
            values: Any,
            index: Any,
            states: Any,
            state_index: Any,
            p: Any,
            state: Any,
            old: Any,
            kept: Any,
            drawn: Any,
            lane: Any,
        ) -> Any:
            self.check_result(p, state)

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                p, state, old, kept, drawn, lane = arguments[4:]
                new = [p, *(builder.extract_value(state, i) for i in range(self.count))]
                for i, place in enumerate(self.places(builder, *arguments[:4])):
                    if not (chosen(i) if i else values):
                        continue
                    raw = self._rounded(builder, i, new[i], drawn, lane)
                    if self.masked:
                        raw = builder.select(kept, builder.extract_value(old, i), raw)
                    store_raw(builder, raw, *place, self.streams, i)
                return context.get_dummy_value()

            places = (types.int64, types.int64, self.addresses, types.int64)
            numbers = (p, state, self.stored, types.boolean, types.int64, types.int64)
            return types.void(*places, *numbers), generate

        return store

    def check_result(self, p: Any, state: Any) -> None:
        """Of a rule, by Numba's types."""
        given = tuple(state) if isinstance(state, types.BaseTuple) else (state,)
        if p != self.compute or given != (self.compute,) * self.count:
            raise TypingError(
                f"the rule returns {p} and {state}; it must return {self.compute} and a tuple of {self.count} "
                "of them, one for each state"
            )

    def value_storer(self) -> Any:
        """`as_stored(p, draws, lane)`: what would be loaded of a value that is stored."""

        @intrinsic
        def as_stored(typing: Any, p: Any, drawn: Any, lane: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                raw = self._rounded(builder, 0, *arguments)
                return self.formats[0].widen(builder, raw, context.get_value_type(self.compute))

            return self.compute(self.compute, types.int64, types.int64), generate

        return as_stored

    def state_taker(self, place: int) -> Any:
        """`take(p, state)`: a state, the value where `place` is -2, or 0 where it is -1."""

        @intrinsic
        def take(typing: Any, p: Any, state: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                if place >= 0:
                    return builder.extract_value(arguments[1], place)
                return arguments[0] if place == -2 else ir.Constant(context.get_value_type(self.compute), 0.0)

            return self.compute(p, state), generate

        return take

    def _rounded(self, builder: Any, i: int, number: Any, drawn: Any, lane: Any) -> Any:
        if self.draws[i] < 0:
            return self.formats[i].round(builder, number)
        place = builder.add(lane, _INDEX(self.draws[i] * TILE))
        draw = builder.load(pointer(builder, drawn, I16, place))
        mark(builder, draw, self.streams, self.gradient + 1)
        return round_at_random(builder, number, draw)

    def term_storer(self, count: int) -> Any:
        """`store(memory, index, terms, kept)`: `count` numbers, each in a row of `TILE`; zeros where `kept`.

        The rows are the streams behind those of gradients and draws.
        """
        plain, compute = FORMATS["float64" if self.compute == types.float64 else "float32"], self.compute

        @intrinsic
        def store(typing: Any, memory: Any, index: Any, terms: Any, kept: Any) -> Any:
            if tuple(terms) != (compute,) * count:
                raise TypingError(f"the statistics return {terms}; they must return a tuple of {count} of {compute}")

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                memory, index, terms, kept = arguments
                zero = ir.Constant(context.get_value_type(compute), 0.0)
                for i in range(count):
                    raw = builder.extract_value(terms, i)
                    if self.masked:
                        raw = builder.select(kept, zero, raw)
                    place = builder.add(memory, _INDEX(i * TILE * plain.size))
                    store_raw(builder, raw, place, index, self.streams, self.streams - count + i)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64, terms, types.boolean), generate

        return store

    def places(self, builder: Any, values: Any, index: Any, states: Any, state_index: Any) -> list[tuple[Any, Any]]:
        return [(values, index), *((builder.extract_value(states, i), state_index) for i in range(self.count))]
