"""The launches of `kernels/launches.py`, by Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..addresses import Sources
from ..launches import NormSlot, StepInputs, Tables
from ..rules import Rule
from ..segments import Segments
from .accumulate import accumulate_kernel
from .compile import twin
from .fill import fill_ as fill
from .launch import TILE, on, program_limit
from .norms import ORDER_INF, ORDER_OTHER, variable_norms_kernel
from .step import step_kernel
from .tiles import DTYPES

__all__ = ["TritonLaunches", "bind", "fill"]


def bind(segments: Segments, device: torch.device, frozen: Tensor | None) -> TritonLaunches:
    """The launches over some variables."""
    return TritonLaunches(Tables(segments, device, TILE.block, frozen))


class TritonLaunches:
    """Kernels over the tables of one plan, with the scratch that they need between launches.

    One plan is launched on one stream at a time: its scratch and its tables are shared by its launches.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        device = tables.device
        self.programs = max(1, min(len(tables.tiles), program_limit(device)))
        self._compute = DTYPES[tables.compute_dtype]
        self._partials = torch.zeros(self.programs, dtype=tables.compute_dtype, device=device)
        self._arrived = torch.zeros(1, dtype=torch.int32, device=device)
        self._variables_arrived = torch.zeros(len(tables.segments), dtype=torch.int32, device=device)

    def accumulate(
        self,
        sources: Sources,
        stream: Tensor | None,
        out: NormSlot,
        *,
        scale: float = 1.0,
        add: bool = False,
        grad_scale: Tensor | None = None,
    ) -> None:
        """See `Launches.accumulate`."""
        tables = self.tables
        with on(tables.device):
            accumulate_kernel[(self.programs,)](
                tables.tiles,
                sources.table,
                self._partials if stream is None else stream,
                self._partials,
                self._arrived,
                out.sums,
                out.norm,
                tables.frozen,
                float(scale),
                out.norm if grad_scale is None else grad_scale,
                len(tables.tiles),
                out.slot,
                STORE=stream is not None,
                ADD=add,
                SCALED=grad_scale is not None,
                SOURCE=_triton_dtype(sources),
                ALIGNED=sources.aligned,
                COMPUTE=self._compute,
                PROGRAMS=triton.next_power_of_2(self.programs),
                BLOCK=tables.block,
                **TILE.options(),
            )

    def norms(self, values: Tensor | None, sources: Sources | None, order: float, out: Tensor) -> None:
        """See `Launches.norms`."""
        tables = self.tables
        with on(tables.device):
            variable_norms_kernel[(len(tables.tiles),)](
                tables.tiles,
                tables.variables,
                tables.variables if sources is None else sources.table,
                self._partials if values is None else values,
                torch.empty((2, len(tables.tiles)), dtype=out.dtype, device=tables.device),
                self._variables_arrived,
                out,
                tables.frozen,
                float(order),
                VALUES=values is not None,
                GRADS=sources is not None,
                ORDER={2.0: 2, 1.0: 1, math.inf: ORDER_INF.value}.get(order, ORDER_OTHER.value),
                SOURCE=None if sources is None else _triton_dtype(sources),
                ALIGNED=sources is not None and sources.aligned,
                COMPUTE=self._compute,
                BLOCK=tables.block,
                **TILE.options(),
            )

    def step(self, sources: Sources, rule: Rule, values: Tensor, states: Sequence[Tensor], inputs: StepInputs) -> None:
        """See `Launches.step`."""
        tables = self.tables
        norm = inputs.norm
        with on(tables.device):
            step_kernel[(len(tables.tiles),)](
                tables.tiles,
                tables.variables,
                sources.table,
                inputs.hyper,
                inputs.steps,
                self._variables_arrived,
                norm,
                norm if inputs.grad_scale is None else inputs.grad_scale,
                norm if inputs.found_inf is None else inputs.found_inf,
                inputs.skipped,
                values,
                tuple(states),
                tables.frozen,
                inputs.base,
                RULE=twin(rule.function),
                NUMBERS=rule.numbers,
                COLUMNS=inputs.hyper.shape[1],
                CLIP=inputs.clip,
                SKIP=inputs.skip,
                SCALED=inputs.grad_scale is not None,
                FOUND_INF=inputs.found_inf is not None,
                COUNT_SKIPS=inputs.count_skips,
                SOURCE=_triton_dtype(sources),
                ALIGNED=sources.aligned,
                COMPUTE=self._compute,
                BLOCK=tables.block,
                **TILE.options(),
            )


def _triton_dtype(sources: Sources) -> object:
    """Of all sources, or None where they differ and the table's code decides."""
    return None if sources.dtype is None else DTYPES[sources.dtype]
