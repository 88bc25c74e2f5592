"""States: the streams of an optimizer over the variables it steps, and how many steps each of them took.

Both live on the device and stay when launches are planned anew: a variable keeps its row of counts and its place in the
streams for as long as the optimizer lives, whichever param group it is in, or none.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..init.fills import name_key
from ..memory.streams import Cover, FormOf, Stream, hull, normal_tensors, own_storage
from ..variables.registry import Registry
from ..variables.variable import Variable, overlaps

# Rows of counts that are made at a time: a captured graph knows where the counts lie, so that they move seldom.
ROWS = 256


APART = ".float32"
"""Behind the name of a state that others store in a format, of the stream of those whose units a border cuts."""


def single(region: torch.dtype) -> torch.dtype:
    """What stands for a format of blocks where there can be none."""
    return torch.float32


def origin_of(streams: Sequence[Stream]) -> dict[str, int]:
    """Where state streams of one range begin in their region, as launches are told it."""
    units = [held.unit for held in streams if held.format is not None]
    return {"base": streams[0].base if streams else 0, "unit": units[0] if units else 0}


class States:
    """State streams and step counts of one optimizer.

    Args:
        registry: Of the variables.
        form_of: From the name of a state to how its stream is stored, by the dtype of its region.

    Attributes:
        steps: float32 [rows] on the device: steps taken by each variable; the kernels count them up. -0.0 of one whose
            state was set before its first step: where it is 0, kernels take the initial values of the rule.
        slots: Row of each variable, by id.
        skipped: int32 [] on the device: steps that `skip_nonfinite` or a GradScaler skipped.
        version: Grows when `steps` or a stream moved, so that views of them must be made anew.
    """

    def __init__(self, registry: Registry, form_of: Callable[[str], FormOf]) -> None:
        self.registry = registry
        self._form_of = form_of
        with normal_tensors():
            self.steps = torch.zeros(0, dtype=torch.float32, device=registry.device)
            self.skipped = torch.zeros((), dtype=torch.int32, device=registry.device)
        self.slots: dict[int, int] = {}
        self._free: list[int] = []  # rows of variables that were removed
        self.version = 0
        self._variables: dict[int, Variable] = {}
        self._epochs: dict[int, int] = {}
        self._paused: Tensor | None = None
        self._scalars: dict[str, Tensor] = {}
        self._keys: Tensor | None = None
        self._keyed = 0, 0  # generation, since a variable may be renamed, and seed that the keys were made of
        self._streams: dict[tuple[torch.dtype, tuple[str, ...], bool], list[Stream]] = {}
        self._generation = -1
        # Where there are several rules: the states of a variable, whose streams then cover those variables alone.
        self.names_of: Callable[[Variable], tuple[str, ...]] | None = None
        self.common: frozenset[str] = frozenset()  # states that every rule has
        self.from_start: frozenset[str] = frozenset()  # states whose streams begin where their regions do
        self._key = registry.register_optimizer()
        weakref.finalize(self, _release, weakref.ref(registry), self._key)

    # Rows -----------------------------------------------------------------------------------------------------------

    def enroll(self, variables: Iterable[Variable]) -> None:
        """Gives a row to every variable that has none, and room in the streams when they are asked for next."""
        new = [v for v in variables if v.id not in self.slots]
        if not new:
            return
        for variable in new:
            self.slots[variable.id] = self._free.pop() if self._free else len(self.slots)
            self._variables[variable.id] = variable
            self._epochs[variable.id] = variable.state_epoch
        self._streams, self._keys = {}, None
        if len(self.slots) > len(self.steps):
            rows = max(-(-len(self.slots) // ROWS) * ROWS, 2 * len(self.steps))
            self.steps = _longer(self.steps, rows)
            if self._paused is not None:
                self._paused = _longer(self._paused, rows)
            self._scalars = {name: _longer(scalar, rows) for name, scalar in self._scalars.items()}
            self.version += 1

    @property
    def taken(self) -> int:
        """Rows up to the last that a variable has or had."""
        return len(self.slots) + len(self._free)

    @property
    def variables(self) -> list[Variable]:
        """All that have a row, in the order they got it."""
        return list(self._variables.values())

    def lost(self) -> list[Variable]:
        """Variables whose room was given up since the last `follow_carve`, and with it what was known of them."""
        return [v for v in self._variables.values() if self._epochs[v.id] != v.state_epoch]

    def follow_carve(self) -> None:
        """Spans moved, maybe to another device."""
        self._streams = {}  # the old ones, which would live until the next step
        device = self.registry.device
        if self.steps.device != device:
            self.steps, self.skipped = self.steps.to(device), self.skipped.to(device)
            self._paused = None if self._paused is None else self._paused.to(device)
            self._scalars = {name: scalar.to(device) for name, scalar in self._scalars.items()}
            self._keys = None
        self.version += 1
        lost = self.lost()
        self.set_steps(lost, [0.0] * len(lost))
        self._epochs.update((v.id, v.state_epoch) for v in lost)
        for variable in [v for v in lost if v.index < 0]:
            self._free.append(self.slots.pop(variable.id))
            del self._variables[variable.id], self._epochs[variable.id]

    def rows(self, variables: Iterable[Variable]) -> Tensor:
        """int64 [variables] on the device."""
        rows = [self.slots[v.id] for v in variables]
        return torch.tensor(rows, dtype=torch.int64).to(self.steps.device, non_blocking=True)

    def step_of(self, variable: Variable) -> Tensor:
        """The count of one variable, float32 []: in place, with a storage of its own."""
        row = self.slots[variable.id]
        with normal_tensors():
            return own_storage(self.steps[row : row + 1]).view(())

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the counts or in a state stream."""
        buffers = [self.steps, *self._scalars.values()]
        buffers += [held.buffer for streams in self._streams.values() for held in streams]
        plain = tensor.layout == torch.strided and not tensor.is_meta
        return plain and any(overlaps(tensor, buffer) for buffer in buffers)

    @torch.no_grad()
    def set_steps(self, variables: Sequence[Variable], counts: Sequence[float | Tensor] | Tensor) -> None:
        """Sets counts in place, so that captured graphs go on from them."""
        if not variables:
            return
        if not isinstance(counts, Tensor):
            numbers = [float(count) for count in counts]
            counts = torch.tensor(numbers, dtype=torch.float32)
        rows, counts = self.rows(variables), counts.to(self.steps.device, torch.float32)
        self.steps[rows] = counts
        if self._paused is not None:
            self._paused[rows] = counts

    @torch.no_grad()
    def note_set(self, variables: Sequence[Variable]) -> None:
        """Variables that took no step go on from the state they have, not from the initial values of the rule."""
        rows = self.rows(variables)
        counts = self.steps[rows]
        self.steps[rows] = torch.where(counts == 0.0, -0.0, counts)

    def keys(self) -> Tensor:
        """int64 [1 + rows] on the device: seed of the store, then the key of each variable's name, at its row."""
        if self._keys is None:
            with normal_tensors():
                self._keys = self._make_keys().to(self.steps.device)
        elif self._keyed != (self.registry.generation, self.registry.seed):
            self._keys.copy_(self._make_keys())  # in place: a captured graph reads it there
        self._keyed = self.registry.generation, self.registry.seed
        return self._keys

    def _make_keys(self) -> Tensor:
        words = np.zeros(1 + len(self.steps), dtype=np.uint64)
        words[0] = self.registry.seed
        for variable in self._variables.values():
            words[1 + self.slots[variable.id]] = name_key(variable.name)
        return torch.from_numpy(words.view(np.int64))

    def scalars(self, names: Sequence[str]) -> list[Tensor]:
        """float32 [rows] each: scalars that every variable keeps, at its row; anything before its first step."""
        for name in names:
            if name not in self._scalars:
                self._scalars[name] = torch.zeros_like(self.steps)
        return [self._scalars[name] for name in names]

    def scalar_of(self, variable: Variable, name: str) -> Tensor:
        """A scalar of one variable, float32 []: in place, with a storage of its own."""
        row = self.slots[variable.id]
        return own_storage(self.scalars([name])[0][row : row + 1]).view(())

    @torch.no_grad()
    def pause(self, variables: Sequence[Variable], at_zero: bool = False) -> None:
        """Steps from now on do not count, though the kernels count them: what they count to is dropped by `resume`.

        Args:
            at_zero: Those up to now do not count either.
        """
        if not variables:
            return
        if self._paused is None:
            with normal_tensors():
                self._paused = torch.zeros_like(self.steps)
        rows = self.rows(variables)
        self._paused[rows] = torch.zeros_like(self.steps[rows]) if at_zero else self.steps[rows]

    @torch.no_grad()
    def resume(self, variables: Sequence[Variable]) -> None:
        """Counts go on from where they were when they paused."""
        if self._paused is not None and variables:
            rows = self.rows(variables)
            self.steps[rows] = self._paused[rows]

    # Streams --------------------------------------------------------------------------------------------------------

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


def _longer(counts: Tensor, rows: int) -> Tensor:
    with normal_tensors():
        longer = torch.zeros(rows, dtype=counts.dtype, device=counts.device)
    longer[: len(counts)] = counts
    return longer


def is_set(count: float) -> bool:
    """Whether a variable has a state: from its first step on, or from when somebody set one, which counts as -0.0."""
    return count > 0.0 or math.copysign(1.0, count) < 0.0
