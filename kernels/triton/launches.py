"""The launches of `kernels/launches.py`, by Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..addresses import Sources
from ..formats import Stored
from ..launches import Again, NormSlot, StepInputs, Tables, draws_of
from ..rules import OBSERVED, Rule, observe
from ..segments import Segments, unit_counts, unit_table
from .accumulate import accumulate_kernel
from .compile import twin
from .fill import fill_ as fill
from .handles import Handles
from .launch import Launch, on, program_limit, tile_for
from .norms import ORDER_INF, ORDER_OTHER, variable_norms_kernel
from .numbers import constants_of, statistics_constants_of
from .split import KINDS
from .squares import GROUP_UNITS, SEATS
from .statistics import statistics_kernel
from .step import step_kernel
from .stored import codes_of, scales_of
from .tiles import DTYPES

__all__ = ["TritonLaunches", "bind", "fill"]


def bind(segments: Segments, device: torch.device, frozen: Tensor | None) -> TritonLaunches:
    """The launches over some variables."""
    tile = tile_for(segments)
    return TritonLaunches(Tables(segments, device, tile.block, frozen), tile)


class TritonLaunches:
    """Kernels over the tables of one plan, with the scratch that they need between launches.

    One plan is launched on one stream at a time: its scratch and its tables are shared by its launches.
    """

    def __init__(self, tables: Tables, tile: Launch) -> None:
        self.tables = tables
        device = tables.device
        self._options = tile.options()
        self._handles = Handles()
        warps = tile.warps
        self.norm_programs, self.programs = (
            max(1, min(len(tables.tiles), program_limit(device, warps, norm))) for norm in (True, False)
        )
        self._compute = DTYPES[tables.compute_dtype]
        firsts = unit_table(tables.segments, tables.block)
        self._units = int(firsts[-1])
        groups = -(-self._units // GROUP_UNITS)
        self._firsts = torch.from_numpy(firsts).to(device)
        self._squares = torch.zeros(self._units, dtype=tables.compute_dtype, device=device)
        self._groups = torch.zeros(groups, dtype=torch.float64, device=device)
        self._arrived = torch.zeros(groups + 1, dtype=torch.int32, device=device)
        self._measures: dict[int, tuple[Tensor, Tensor]] = {}
        self._variables_arrived = torch.zeros(len(tables.segments), dtype=torch.int32, device=device)

    @cached_property
    def _owners(self) -> Tensor:
        """The variable of every unit, int32."""
        owners = np.repeat(np.arange(len(self.tables.segments), dtype=np.int32), unit_counts(self.tables.segments))
        return torch.from_numpy(owners).to(self.tables.device)

    @cached_property
    def _written(self) -> Tensor:
        """[1 + variables] int32: number of the last norm of viewed sources, and of the last that found each written.

        Numbers, so that nothing has to be cleared, and on the device, so that a captured graph goes on counting.
        """
        return torch.zeros(1 + len(self.tables.segments), dtype=torch.int32, device=self.tables.device)

    lanes: ClassVar[int] = SEATS.value

    def squares(self) -> Tensor:
        """See `Launches.squares`."""
        return self._squares

    def written(self) -> Tensor:
        """See `Launches.written`."""
        return self._written[1:] == self._written[0]

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
        tables, viewed = self.tables, sources.viewed
        scale_of = out.norm if grad_scale is None else grad_scale
        target = self._squares if stream is None else stream
        args = (
            tables.tiles,
            self._firsts,
            sources.table,
            target,
            self._squares,
            self._groups,
            self._arrived,
            self._owners if viewed else self._firsts,
            self._written if viewed else self._arrived,
            out.sums,
            out.norm,
            tables.frozen,
            float(scale),
            scale_of,
            len(tables.tiles),
            self._units,
            out.slot,
        )
        constants = {
            "STORE": stream is not None,
            "ADD": add,
            "SCALED": grad_scale is not None,
            "VIEWED": viewed,
            "SOURCE": _triton_dtype(sources),
            "COMPUTE": self._compute,
            "BLOCK": tables.block,
        }
        programs = self.norm_programs if stream is None and not viewed else self.programs
        changing = (sources.table, target, out.sums, out.norm, scale_of)
        with on(tables.device):
            self._handles.launch(accumulate_kernel, programs, args, constants, self._options, changing)
        return lambda norm: self.accumulate(
            sources, stream, replace(out, norm=norm), scale=scale, add=add, grad_scale=grad_scale
        )

    def norms(self, values: Tensor | None, sources: Sources | None, order: float, out: Tensor) -> None:
        """See `Launches.norms`."""
        tables = self.tables
        table = tables.variables if sources is None else sources.table
        stream = self._squares if values is None else values
        partials = torch.empty((2, len(tables.tiles)), dtype=out.dtype, device=tables.device)
        args = (
            tables.tiles,
            tables.variables,
            table,
            stream,
            partials,
            self._variables_arrived,
            out,
            tables.frozen,
            float(order),
        )
        constants = {
            "VALUES": values is not None,
            "GRADS": sources is not None,
            "ORDER": {2.0: 2, 1.0: 1, math.inf: ORDER_INF.value}.get(order, ORDER_OTHER.value),
            "SOURCE": None if sources is None else _triton_dtype(sources),
            "COMPUTE": self._compute,
            "BLOCK": tables.block,
        }
        with on(tables.device):
            self._handles.launch(
                variable_norms_kernel,
                len(tables.tiles),
                args,
                constants,
                self._options,
                (table, stream, partials, out),
            )

    def _sums(self, count: int) -> tuple[Tensor, Tensor]:
        """Scratch of so many sums of every variable: [count, units], and [variables, count] float64."""
        found = self._measures.get(count)
        if found is None:
            tables = self.tables
            units = torch.zeros((count, self._units), dtype=tables.compute_dtype, device=tables.device)
            sums = torch.zeros((len(tables.segments), count), dtype=torch.float64, device=tables.device)
            found = self._measures[count] = units, sums
        return found

    @cached_property
    def _observed(self) -> Tensor:
        """Scratch of what a step tells of its variables: [sums, units]."""
        tables = self.tables
        return torch.zeros((len(OBSERVED), self._units), dtype=tables.compute_dtype, device=tables.device)

    def sums(self, rule: Rule) -> Tensor:
        """See `Launches.sums`."""
        assert rule.statistics is not None
        return self._sums(len(rule.statistics.names))[1]

    def statistics(
        self, sources: Sources, rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs
    ) -> Again:
        """See `Launches.statistics`."""
        tables, norm = self.tables, inputs.norm
        scale = norm if inputs.grad_scale is None else inputs.grad_scale
        found = norm if inputs.found_inf is None else inputs.found_inf
        assert rule.statistics is not None
        scratch, sums = self._sums(len(rule.statistics.names))
        keys = tables.tiles if inputs.keys is None else inputs.keys
        held = tuple(states)
        low, prints = values.beside or (values.buffer, tables.tiles)
        scales, by_unit = scales_of(held), any(one.beside for one in (values, *held))
        units = tables.units if by_unit else tables.tiles
        args = (
            tables.tiles,
            tables.variables,
            self._firsts,
            sources.table,
            self._written if sources.viewed else self._arrived,
            inputs.hyper,
            inputs.steps,
            self._variables_arrived,
            norm,
            scale,
            found,
            values.buffer if values.places is None else values.places,
            low,
            prints,
            tuple(state.buffer for state in held),
            scales,
            units,
            inputs.own,
            keys,
            scratch,
            sums,
            tables.frozen,
            self._units,
            inputs.base,
            inputs.unit,
        )
        options = self._options_of(sources, inputs)
        stored = _stored(rule, values, held, inputs)
        del stored["AT_RANDOM"]  # of values, which a step stores
        constants = {**statistics_constants_of(rule), **stored, **options, "PLACED": _placed(values)}
        changing = (sources.table, inputs.hyper, inputs.steps, norm, scale, found, *_buffers(values, held), units)
        changing += (*inputs.own, keys)
        with on(tables.device):
            programs = len(tables.tiles)
            width = max(inputs.base, inputs.unit)
            self._handles.launch(statistics_kernel, programs, args, constants, self._options, changing, width)
        return lambda norm: self.statistics(sources, rule, values, states, inputs._replace(norm=norm))

    def _options_of(self, sources: Sources, inputs: StepInputs) -> dict[str, object]:
        return {
            "CLIP": inputs.clip,
            "SKIP": inputs.skip,
            "SCALED": inputs.grad_scale is not None,
            "FOUND_INF": inputs.found_inf is not None,
            "VIEWED": sources.viewed,
            "SOURCE": _triton_dtype(sources),
            "COMPUTE": self._compute,
            "BLOCK": self.tables.block,
        }

    def step(self, sources: Sources, rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs) -> Again:
        """See `Launches.step`."""
        tables, norm = self.tables, inputs.norm
        scale = norm if inputs.grad_scale is None else inputs.grad_scale
        found = norm if inputs.found_inf is None else inputs.found_inf
        keys = tables.tiles if inputs.keys is None else inputs.keys
        held = tuple(states)
        low, prints = values.beside or (values.buffer, tables.tiles)
        scales, by_unit = scales_of(held), any(one.beside for one in (values, *held))
        units = tables.units if by_unit else tables.tiles
        observed = inputs.observed
        args = (
            tables.tiles,
            tables.variables,
            sources.table,
            self._written if sources.viewed else self._arrived,
            inputs.hyper,
            inputs.steps,
            self._variables_arrived,
            norm,
            scale,
            found,
            inputs.skipped,
            values.buffer if values.places is None else values.places,
            low,
            prints,
            tuple(state.buffer for state in held),
            scales,
            units,
            inputs.own,
            keys,
            self._groups if rule.statistics is None else self._sums(len(rule.statistics.names))[1],
            self._firsts,
            self._squares if observed is None else self._observed,
            self._groups if observed is None else observed,
            tables.frozen,
            self._units,
            inputs.base,
            inputs.unit,
        )
        constants = {
            **constants_of(rule),
            "OBSERVE": None if observed is None else twin(observe),
            **_stored(rule, values, held, inputs),
            "CLIP": inputs.clip,
            "SKIP": inputs.skip,
            "SCALED": inputs.grad_scale is not None,
            "FOUND_INF": inputs.found_inf is not None,
            "COUNT_SKIPS": inputs.count_skips,
            "VIEWED": sources.viewed,
            "SOURCE": _triton_dtype(sources),
            "COMPUTE": self._compute,
            "BLOCK": tables.block,
            "PLACED": _placed(values),
            "CLEAR": inputs.clear and sources.viewed,
        }
        changing = (sources.table, inputs.hyper, inputs.steps, norm, scale, found, inputs.skipped)
        changing += (*_buffers(values, held), units, *inputs.own, keys, *(() if observed is None else (observed,)))
        with on(tables.device):
            programs = len(tables.tiles)
            width = max(inputs.base, inputs.unit)
            self._handles.launch(step_kernel, programs, args, constants, self._options, changing, width)
        return lambda norm: self.step(sources, rule, values, states, inputs._replace(norm=norm))


def _stored(rule: Rule, values: Stored, states: Sequence[Stored], inputs: StepInputs) -> dict[str, object]:
    """What a kernel is compiled for, of how its streams are stored."""
    return {
        "DRAWS": draws_of(rule, states, inputs),
        "SPLIT": KINDS[values.format],
        "AT_RANDOM": values.at_random and inputs.keys is not None,
        "FORMATS": codes_of(states),
    }


def _placed(values: Stored) -> object:
    """Of values that lie by address: their dtype, which a table of addresses does not say."""
    return None if values.places is None else DTYPES[values.buffer.dtype]


def _buffers(values: Stored, states: Sequence[Stored]) -> list[Tensor]:
    first = [] if values.places is None else [values.places]
    return [*first, *(buffer for one in (values, *states) for buffer in (one.buffer, *one.beside))]


def _triton_dtype(sources: Sources) -> object:
    """Of all sources, or None where they differ and the table's code decides."""
    return None if sources.dtype is None else DTYPES[sources.dtype]
