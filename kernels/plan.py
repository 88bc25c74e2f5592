"""The Triton backend: a plan holds the device tables of one set of variables and launches the kernels over them.

`kernels/eager/plan.py` is its twin on torch, with the same methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from .accumulate import accumulate_kernel
from .errors import FlatvarsError, check_order
from .launch import TILE, on, program_limit
from .norm import ORDER_INF, ORDER_OTHER, variable_norms_kernel
from .pointers import PointerTable, Sources
from .rules import Rule
from .segments import Segments
from .step import step_kernel
from .tiles import DTYPES, is_capturing, tile_table, upload


class Plan:
    """Tiles, pointer table and counts of some variables of one region.

    Args:
        segments: The variables, in the order of their offsets.
        device: Of the streams.
        norm: float32 [] that every norm of this region's store or optimizer is written to.
        sums: float32 (float64) [regions] shared by the plans of one norm.
        slot: Position of this region among them; launches of one norm run in slot order.
        frozen: uint8 [trainable numel], not 0 for masked elements, which keep value and state and count in no gradient
            norm; None where all elements train.
    """

    backend = "triton"

    def __init__(
        self,
        segments: Segments,
        device: torch.device,
        norm: Tensor,
        sums: Tensor,
        slot: int,
        frozen: Tensor | None = None,
    ) -> None:
        self.segments = segments
        self.device = device
        self.frozen = frozen
        self.norm_out, self.sums, self.slot = norm, sums, slot
        rows = tile_table(segments, TILE.block)
        self.tiles = torch.from_numpy(rows).to(device)
        self.counts = torch.zeros(len(rows), dtype=torch.int32, device=device)
        self.pointers = PointerTable(segments, device)
        self.programs = max(1, min(len(rows), program_limit(device)))
        compute = segments.compute_dtype
        self._compute = DTYPES[compute]
        self._partials = torch.zeros(self.programs, dtype=compute, device=device)
        self._arrived = torch.zeros(1, dtype=torch.int32, device=device)
        tiles_of = np.bincount(rows[:, 3], minlength=len(segments))
        ranges = np.stack([np.cumsum(tiles_of) - tiles_of, tiles_of], axis=1).astype(np.int64)
        self._ranges = torch.from_numpy(ranges).to(device)
        self._variables_arrived = torch.zeros(len(segments), dtype=torch.int32, device=device)
        self._hyper: Tensor | None = None
        self._hyper_rows: Any = None

    # Which gradients a launch reads -------------------------------------------------------------------------------

    def scattered(self, grads: Sequence[Tensor | None]) -> Sources:
        return self.pointers.scattered(grads)

    def gathered(self, stream: Tensor, touched: Sequence[bool]) -> Sources:
        return self.pointers.gathered(stream, touched)

    # Launches -----------------------------------------------------------------------------------------------------

    def norm_(self, sources: Sources, grad_scale: Tensor | None = None) -> None:
        """Writes the L2 norm of the gradients, divided by `grad_scale` if given, to `norm`. One launch."""
        self._accumulate(sources, self._partials, 1.0, store=False, add=False, grad_scale=grad_scale)

    def accumulate_(self, grads: Sequence[Tensor | None], stream: Tensor, scale: float, add: bool) -> None:
        """Gathers into the flat stream and writes the norm of what it then holds to `norm`. One launch."""
        self._accumulate(self.scattered(grads), stream, scale, store=True, add=add)

    def _accumulate(
        self,
        sources: Sources,
        stream: Tensor,
        scale: float,
        *,
        store: bool,
        add: bool,
        grad_scale: Tensor | None = None,
    ) -> None:
        with on(self.device):
            accumulate_kernel[(self.programs,)](
                self.tiles,
                sources.table,
                stream,
                self._partials,
                self._arrived,
                self.sums,
                self.norm_out,
                self.frozen,
                scale,
                self.norm_out if grad_scale is None else grad_scale,
                len(self.tiles),
                self.slot,
                STORE=store,
                ADD=add,
                SCALED=grad_scale is not None,
                SOURCE=sources.dtype,
                ALIGNED=sources.aligned,
                COMPUTE=self._compute,
                PROGRAMS=triton.next_power_of_2(self.programs),
                BLOCK=TILE.block,
                **TILE.options(),
            )

    def variable_norms(self, values: Tensor | None, sources: Sources | None, order: float) -> Tensor:
        """Norms of every variable, [variables, 2]: of its value and of its gradient; 0 for what is not given."""
        check_order(order)
        out = torch.empty((len(self.segments), 2), dtype=self.segments.compute_dtype, device=self.device)
        with on(self.device):
            variable_norms_kernel[(len(self.tiles),)](
                self.tiles,
                self._ranges,
                self.pointers.table if sources is None else sources.table,
                self._partials if values is None else values,
                torch.empty((2, len(self.tiles)), dtype=out.dtype, device=self.device),
                self._variables_arrived,
                out,
                self.frozen,
                float(order),
                VALUES=values is not None,
                GRADS=sources is not None,
                ORDER={2.0: 2, 1.0: 1, math.inf: ORDER_INF.value}.get(order, ORDER_OTHER.value),
                SOURCE=None if sources is None else sources.dtype,
                ALIGNED=sources is not None and sources.aligned,
                COMPUTE=self._compute,
                BLOCK=TILE.block,
                **TILE.options(),
            )
        return out

    def step_(
        self,
        sources: Sources,
        rule: Rule,
        values: Tensor,
        states: Sequence[Tensor],
        groups: Sequence[Mapping[str, Any]],
        *,
        norm: Tensor,
        max_norm: float | None,
        skip: bool,
        skipped: Tensor,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Updates values and states of all variables that have a source. One launch.

        Args:
            groups: Param groups, in the order of the segments' group numbers.
            norm: [] on the device, of all gradients of the step; read only to clip or skip.
            max_norm: Multiply gradients by the coefficient that clips `norm` to this; None for none.
            skip: Leave everything as it is when `norm` is not finite, and count it in `skipped`.
            grad_scale, found_inf: A GradScaler's, float32 [] on the device: divide gradients by the one, leave
                everything as it is when the other is not 0.
        """
        hyper = self.upload_hyper(rule, groups, max_norm)
        with on(self.device):
            step_kernel[(len(self.tiles),)](
                self.tiles,
                sources.table,
                hyper,
                self.counts,
                norm,
                norm if grad_scale is None else grad_scale,
                norm if found_inf is None else found_inf,
                skipped,
                values,
                tuple(states),
                self.frozen,
                RULE=rule.function,
                COLUMNS=hyper.shape[1],
                CLIP=max_norm is not None,
                SKIP=skip,
                SCALED=grad_scale is not None,
                FOUND_INF=found_inf is not None,
                COUNT_SKIPS=self.slot == 0,
                SOURCE=sources.dtype,
                ALIGNED=sources.aligned,
                COMPUTE=self._compute,
                BLOCK=TILE.block,
                **TILE.options(),
            )

    # Numbers on the device ----------------------------------------------------------------------------------------

    def upload_hyper(self, rule: Rule, groups: Sequence[Mapping[str, Any]], max_norm: float | None) -> Tensor:
        """The hyper-parameter table, [groups, 1 + columns of the rule]; copied over when a number changed.

        A number that is a tensor on the device is copied there on the device, every time: its value is not known here.
        """
        rows = [(math.inf if max_norm is None else max_norm, *rule.hyper(group)) for group in groups]
        tensors = [(i, j, x) for i, row in enumerate(rows) for j, x in enumerate(row) if isinstance(x, Tensor)]
        for i, j, x in tensors:
            rows[i] = (*rows[i][:j], 0.0 if x.is_cuda else float(x), *rows[i][j + 1 :])
        if self._hyper is None:
            shape = (len(rows), len(rows[0]))
            self._hyper = torch.zeros(shape, dtype=self.segments.compute_dtype, device=self.device)
        if rows != self._hyper_rows:
            if is_capturing(self._hyper):
                # A captured copy would put today's numbers back at every replay.
                raise FlatvarsError(
                    "param_groups changed since the last step, or no step was taken yet, while a CUDA graph is being "
                    "captured; call optimizer.upload_hyperparameters() before the capture and before each replay"
                )
            upload(self._hyper, torch.tensor(rows, dtype=self._hyper.dtype))
            self._hyper_rows = rows
        for i, j, x in tensors:
            if x.is_cuda:
                self._hyper[i, j].copy_(x.squeeze(), non_blocking=True)
        return self._hyper

    def step_counts(self) -> Tensor:
        """Steps taken by each variable, [variables] int32."""
        return self.counts[self._ranges[:, 0]]

    def load_step_counts(self, counts: Tensor) -> None:
        """Sets the steps taken, [variables] int32."""
        self.counts.copy_(counts.to(self.device, torch.int32)[self.tiles[:, 3]])
