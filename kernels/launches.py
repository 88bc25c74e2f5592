"""What a plan asks of a compiler's kernels: one protocol, implemented by `kernels/triton` and `kernels/cpu`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .addresses import Sources
from .fills import Fill
from .formats import Stored, is_rounded
from .rules import Rule
from .segments import Segments, tile_table, variable_table


@dataclass
class Tables:
    """What every launch of a plan reads: its variables, cut into tiles, on the device.

    Attributes:
        segments: The variables.
        device: Of all tensors.
        block: Elements of a tile, at most.
        frozen: uint8 [trainable numel], not 0 for masked elements; None where all elements train.
        count: Tiles.
    """

    segments: Segments
    device: torch.device
    block: int
    frozen: Tensor | None

    def __post_init__(self) -> None:
        rows = tile_table(self.segments, self.block)
        self.count = len(rows)
        self.tiles = torch.from_numpy(rows).to(self.device)
        self.variables = torch.from_numpy(variable_table(self.segments, rows)).to(self.device)

    @cached_property
    def units(self) -> Tensor:
        """int64 [variables]: first unit of each, in buffers that have an item for each unit."""
        return torch.tensor(self.segments.units, dtype=torch.int64).to(self.device)

    @cached_property
    def numel(self) -> int:
        """Elements of all variables."""
        return int(self.segments.lengths.sum())

    @cached_property
    def compute_dtype(self) -> torch.dtype:
        return self.segments.compute_dtype


@dataclass(frozen=True)
class NormSlot:
    """Where the norm of a region goes.

    Attributes:
        norm: [] that the norm over all regions so far is written to.
        sums: float64 [regions] sums of squares, shared by the plans of one norm.
        slot: This region among them; launches of one norm run in slot order.
    """

    norm: Tensor
    sums: Tensor
    slot: int


def draws_of(rule: Rule, states: Sequence[Stored], inputs: StepInputs) -> tuple[int, ...]:
    """For each state, which of the rule's draws rounds it at random; -1 where it is rounded to nearest."""
    rounded = [inputs.keys is not None and is_rounded(state.buffer.dtype, state.format) for state in states]
    return rule.draws(rounded)


class StepInputs(NamedTuple):
    """What a step reads beside gradients, values and states.

    Attributes:
        hyper: [groups, 1 + columns of the rule]: max_norm, then the rule's rows; float64 of rules that are `wide`.
        steps: float32 [slots] in/out: steps taken by each variable; -0.0 where a state was set before the first one.
        base: Element of the region at which the state streams begin, a multiple of 128.
        norm: [] of all gradients of the step; read only to clip or skip.
        clip: Whether gradients are multiplied by the coefficient that clips `norm` to the group's max_norm.
        skip: Whether everything stays as it is when `norm` is not finite.
        skipped: int32 [] in/out: steps that were skipped, counted where `count_skips`.
        grad_scale, found_inf: float32 [] or None: divide gradients by the one, change nothing if the other is not 0.
        own: float32 [slots] in/out of each scalar that the rule's variables keep, at the slots of `steps`.
        observed: float64 [slots, sums] out: what `rules/observe.py` tells of each variable; None for nothing.
        keys: int64 [1 + slots]: seed, then the key of each variable's name, for the states that the rule rounds at
            random; None rounds all to nearest.
        unit: Unit of the region at which the buffers of state streams begin that have an item for each unit.
        clear: Whether the gradients of viewed sources are written -0.0 once they were read, as if nobody had written
            them; those of a step that is skipped, too. What lies behind a variable in its last line of 128 bytes, which
            is no other's, may be written with it.
    """

    hyper: Tensor
    steps: Tensor
    base: int
    norm: Tensor
    clip: bool
    skip: bool
    skipped: Tensor
    count_skips: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None
    own: tuple[Tensor, ...] = ()
    keys: Tensor | None = None
    unit: int = 0
    observed: Tensor | None = None
    clear: bool = False


Again = Callable[[Tensor], object]
"""Makes a launch once more, with all that it was given but for another tensor of the same dtype for the norm.

For who knows that all other tensors lie where they lay, and that nothing else changed: nothing is looked at again.
"""


class Launches(Protocol):
    """The kernels of one compiler over the tables of one plan."""

    tables: Tables
    lanes: ClassVar[int]
    """Sums that groups of units are dealt out to: see `squares`."""

    def accumulate(
        self,
        sources: Sources,
        stream: Tensor | None,
        out: NormSlot,
        *,
        scale: float = 1.0,
        add: bool = False,
        grad_scale: Tensor | None = None,
    ) -> Again:
        """Writes `scale` times the gradients into `stream`, or adds them, and the norm of what it then holds.

        With no stream, the norm of the gradients alone, divided by `grad_scale` if given; of `sources.viewed`, it also
        notes for `written`, `step` and later launches which variables were written: those of which an element is not
        -0.0, masked or not, and those without elements that have an address.
        """

    def squares(self) -> Tensor:
        """What the last norm alone found: sums of squares, [units], of `UNIT` elements each, in the order of the tiles.

        The norm is the root of their sum: 1,024 units make a group, added as neighbors, then neighbors of the results,
        and so on; group i goes to lane i % `lanes`, in order, and lanes are added as units are; all in float64.
        """

    def written(self) -> Tensor:
        """Which variables the last norm of viewed sources found written, bool [variables] on the device."""

    def norms(self, values: Tensor | None, sources: Sources | None, order: float, out: Tensor) -> None:
        """Writes the norms of every variable, [variables, 2]: of its value and its gradient; 0 where not given."""

    def statistics(
        self, sources: Sources, rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs
    ) -> Again:
        """Takes the sums that the rule's step needs of every variable that has a source; `step` must run next.

        Of a rule whose statistics move, it updates the states. It counts nothing, no skipped step either, and is never
        told to clear: `step` may read the gradients again.
        """

    def sums(self, rule: Rule) -> Tensor:
        """What the last `statistics` of this rule wrote, float64 [variables, sums] on the device."""

    def step(self, sources: Sources, rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs) -> Again:
        """Updates values and states of all variables that have a source, and counts their steps.

        Of `sources.viewed`, those that the last norm found written.
        """


class Compiler(Protocol):
    """A package of kernels."""

    def bind(self, segments: Segments, device: torch.device, frozen: Tensor | None) -> Launches:
        """Its launches over some variables; chooses the tiles."""

    def fill(self, stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
        """Writes all of `fills` into a stream, each by its draw."""
