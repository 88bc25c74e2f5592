"""The launches of `kernels/launches.py`, by Numba."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..addresses import Sources
from ..formats import Stored
from ..launches import Again, NormSlot, StepInputs, Tables
from ..rules import OBSERVED, Rule
from ..segments import Segments
from . import accumulate, norms, statistics, step
from .fill import fill
from .gradients import TILE
from .prepared import Launcher
from .squares import GROUP, units_of

__all__ = ["CpuLaunches", "bind", "fill"]


def bind(segments: Segments, device: torch.device, frozen: Tensor | None) -> CpuLaunches:
    """The launches over some variables."""
    return CpuLaunches(Tables(segments, device, TILE, frozen))


class CpuLaunches:
    """Compiled functions over the tables of one plan, with the scratch that they need.

    One plan is launched by one Python thread at a time; any number of plans may be.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._units = units_of(tables)
        self._sums: dict[int, step.Measures] = {}
        self._norm, self._gather, self._measure, self._step = Launcher(), Launcher(), Launcher(), Launcher()
        self._written = torch.zeros(len(tables.segments), dtype=torch.uint8)

    lanes: ClassVar[int] = GROUP

    def squares(self) -> Tensor:
        """See `Launches.squares`."""
        return torch.from_numpy(self._units.squares)

    def written(self) -> Tensor:
        """See `Launches.written`."""
        return self._written.view(torch.bool)

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
        """See `Launches.accumulate`."""
        written = self._written if sources.viewed else None
        launcher = self._norm if stream is None else self._gather
        return accumulate.launch(
            launcher, self.tables, self._units, sources, stream, out, scale, add, grad_scale, written
        )

    def norms(self, values: Tensor | None, sources: Sources | None, order: float, out: Tensor) -> None:
        """See `Launches.norms`."""
        norms.launch(self.tables, values, sources, order, out)

    def _measures(self, count: int) -> step.Measures:
        """Scratch of so many sums of every variable."""
        found = self._sums.get(count)
        if found is None:
            units, sums = self._units, np.zeros((len(self.tables.segments), count))
            scratch = np.zeros_like(units.squares, shape=(count, len(units.squares)))
            found = self._sums[count] = step.Measures(sums, units.firsts, scratch)
        return found

    @cached_property
    def _observed(self) -> step.Measures:
        """Scratch of what a step tells of its variables."""
        units = self._units
        scratch = np.zeros_like(units.squares, shape=(len(OBSERVED), len(units.squares)))
        return step.Measures(np.zeros((0, 0)), units.firsts, scratch)

    def sums(self, rule: Rule) -> Tensor:
        """See `Launches.sums`."""
        assert rule.statistics is not None
        return torch.from_numpy(self._measures(len(rule.statistics.names)).sums)

    def statistics(
        self, sources: Sources, rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs
    ) -> Again:
        """See `Launches.statistics`."""
        assert rule.statistics is not None
        written = self._written if sources.viewed else None
        measures = self._measures(len(rule.statistics.names))
        return statistics.launch(self._measure, self.tables, sources, rule, values, states, inputs, written, measures)

    def step(self, sources: Sources, rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs) -> Again:
        """See `Launches.step`."""
        measures = None if rule.statistics is None else self._measures(len(rule.statistics.names))
        written = self._written if sources.viewed else None
        observed = None if inputs.observed is None else self._observed
        return step.launch(self._step, self.tables, sources, rule, values, states, inputs, written, measures, observed)
