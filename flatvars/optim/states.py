"""States: the streams of an optimizer over the variables it steps, beside how many steps each of them took.

A variable keeps its place in the streams when launches are planned anew, for as long as the optimizer lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..memory.streams import Cover, FormOf, Stream, hull
from ..variables.registry import Registry
from ..variables.variable import Variable, overlaps
from .rows import Rows

APART = ".float32"
"""Behind the name of a state that others store in a format, of the stream of those whose units a border cuts."""


def single(region: torch.dtype) -> torch.dtype:
    """What stands for a format of blocks where there can be none."""
    return torch.float32


def origin_of(streams: Sequence[Stream]) -> dict[str, int]:
    """Where state streams of one range begin in their region, as launches are told it."""
    units = [held.unit for held in streams if held.format is not None]
    return {"base": streams[0].base if streams else 0, "unit": units[0] if units else 0}


class States(Rows):
    """State streams and step counts of one optimizer.

    Args:
        registry: Of the variables.
        form_of: From the name of a state to how its stream is stored, by the dtype of its region.
    """

    def __init__(self, registry: Registry, form_of: Callable[[str], FormOf]) -> None:
        super().__init__(registry)
        self._form_of = form_of
        self._streams: dict[tuple[torch.dtype, tuple[str, ...], bool], list[Stream]] = {}
        self._generation = -1
        # Where there are several rules: the states of a variable, whose streams then cover those variables alone.
        self.names_of: Callable[[Variable], tuple[str, ...]] | None = None
        self.common: frozenset[str] = frozenset()  # states that every rule has
        self.from_start: frozenset[str] = frozenset()  # states whose streams begin where their regions do
        self._key = registry.register_optimizer()
        weakref.finalize(self, _release, weakref.ref(registry), self._key)

    def enroll(self, variables: Iterable[Variable]) -> None:
        known = len(self.slots)
        super().enroll(variables)
        if len(self.slots) != known:
            self._streams = {}

    def follow_carve(self) -> None:
        self._streams = {}  # the old ones, which would live until the next step
        super().follow_carve()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the counts or in a state stream."""
        buffers = [self.steps, *self._scalars.values()]
        buffers += [held.buffer for streams in self._streams.values() for held in streams]
        plain = tensor.layout == torch.strided and not tensor.is_meta
        return plain and any(overlaps(tensor, buffer) for buffer in buffers)

    @property
    def is_divided(self) -> bool:
        """Whether this rank keeps the state of its share alone."""
        return self.registry.group is not None

    @property
    def is_partial(self) -> bool:
        """Whether this rank keeps state of parts of variables alone: of its share, or of shards that others divided.

        Such state is shown before a first step, as zeros: torch.distributed.checkpoint else takes a step of its own.
        """
        return self.is_divided or self.registry.sharding is not None

    def key_of(self, name: str) -> str:
        """What the stream of a state is called in the store."""
        return f"{self._key}.{name}"

    def find(self, name: str, region: torch.dtype) -> Stream | None:
        """A state stream if it exists."""
        return self.registry.streams.find(f"{self._key}.{name}", region)

    def is_coded(self, name: str, region: torch.dtype) -> bool:
        """Whether a state is stored in a format."""
        return not isinstance(self._form_of(name)(region), torch.dtype)

    def is_apart(self, variable: Variable, names: Iterable[str]) -> bool:
        """Whether states of a variable, some of these, are plain where those of others are of a format.

        A format has blocks of 128 elements of the whole variable, of which each must lie on one rank.
        """
        return variable.spec.cuts_units and any(self.is_coded(name, variable.dtype) for name in names)

    def stored_name(self, name: str, variable: Variable) -> str:
        """What the stream of a variable's state is called."""
        return f"{name}{APART}" if self.is_apart(variable, [name]) else name

    def streams(self, region: torch.dtype, names: tuple[str, ...], apart: bool = False) -> list[Stream]:
        """The streams of these states in a region, over one range; made of zeros when first asked for.

        Args:
            apart: Of the variables whose states are plain where those of others are of a format.
        """
        if self._generation != self.registry.generation:
            self._streams, self._generation = {}, self.registry.generation
        key = (region, names, apart)
        if key not in self._streams:
            # A state that all rules have covers what they all do, and the others no more for its sake.
            common = tuple(name for name in names if name in self.common)
            others = tuple(name for name in names if name not in self.common)
            coded: tuple[str, ...] = ()
            if self.registry.sharding is not None:
                coded = tuple(name for name in others if self.is_coded(name, region))
                others = tuple(name for name in others if name not in coded)
            made = {**self._made(region, common), **self._made(region, others), **self._made(region, coded, apart)}
            base = max((stream.base for stream in made.values()), default=0)
            self._streams[key] = [made[name].from_base(base) for name in names]
        return self._streams[key]

    def _made(self, region: torch.dtype, names: tuple[str, ...], apart: bool | None = None) -> dict[str, Stream]:
        """By name, over one range.

        Args:
            apart: Of states in a format: whether of the variables that are apart, or of the others; None of all.
        """
        if not names:
            return {}
        stored = [f"{name}{APART}" for name in names] if apart else list(names)
        streams, keys = self.registry.streams, list(map(self.key_of, stored))
        before, forms = [self.find(name, region) for name in stored], list(map(self._form_of, names))
        forms = [single] * len(names) if apart else forms
        if self.is_divided:
            # Of one rule, all of the share: what is added later finds its room there.
            part = None if self.names_of is None else self._cover(region, names)
            made = [streams.share_of(key, region, form, part) for key, form in zip(keys, forms, strict=True)]
        else:
            cover = self._cover(region, names, apart)
            made = [streams.get(key, region, form, cover) for key, form in zip(keys, forms, strict=True)]
        self.version += any(old is not new for old, new in zip(before, made, strict=True))
        return dict(zip(names, made, strict=True))

    def _cover(self, region: torch.dtype, names: tuple[str, ...], apart: bool | None = None) -> Cover:
        """From the first to the last variable that has room for such state, and all that is covered already."""
        variables = [v for v in self._variables.values() if v.dtype == region and v.spec.has_room]
        if apart is not None:
            variables = [v for v in variables if v.spec.cuts_units is apart]
        if self.names_of is None and apart is not None:
            related = set(names)
        elif self.names_of is None:
            prefix = f"{self._key}."
            related = {name.removeprefix(prefix) for name in self.registry.streams.names() if name.startswith(prefix)}
        else:
            # The streams of one rule cover the same range, and so do those of rules that share a state.
            kinds, related = {self.names_of(v) for v in variables} | {names}, set(names)
            if not self.common.intersection(names):
                kinds = {tuple(name for name in kind if name not in self.common) for kind in kinds}
            else:
                kinds = {names}
            while more := {name for kind in kinds if related.intersection(kind) for name in kind} - related:
                related |= more
            variables = [v for v in variables if related.intersection(self.names_of(v))]
        found = [self.find(f"{name}{APART}" if apart else name, region) for name in related]
        ranges = [held.cover for held in found if held is not None]
        if variables:
            ranges.append(hull(v.span for v in variables))
        if not ranges:
            return 0, 0
        start = 0 if self.from_start.intersection(related) else min(start for start, _ in ranges)
        return start, max(stop for _, stop in ranges)

    def covering(self, name: str, variable: Variable) -> Stream | None:
        """The stream of a state where it covers a variable."""
        held = self.find(self.stored_name(name, variable), variable.dtype)
        return held if held is not None and held.covers(variable.span) else None

    @torch.no_grad()
    def erase(self, variables: Sequence[Variable]) -> None:
        """Makes zeros of all that is known of some variables."""
        self.set_steps(variables, [0.0] * len(variables))
        prefix = f"{self._key}."
        known = [name.removeprefix(prefix) for name in self.registry.streams.names() if name.startswith(prefix)]
        for name in dict.fromkeys(name.removesuffix(APART) for name in known):
            for variable in variables:
                held = self.covering(name, variable)
                if held is not None and variable.spec.has_room:
                    held.write(variable.span, None)


def _release(reference: weakref.ref[Registry], key: str) -> None:
    """Frees the state of an optimizer that is gone. The registry is not kept for that: its hooks may lead back here."""
    registry = reference()
    if registry is not None:
        registry.release_optimizer(key)
