"""The torch backend: the plan of `kernels/plan.py` with the same methods, on torch operators.

Numerics: rules in float32 (float64 for float64 regions); hyper-parameters and step counts are Python floats, so bias
corrections are computed in double precision. Regions in float32 and float64 go through torch's fused operator where the
rule names one; everything else runs the rule itself on chunks that stay in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import check_order
from ..rules import Rule
from ..segments import Segments
from ..sources import flat, in_memory_order
from .accumulate import Accumulation
from .runs import Gather, Loaded, Run, find_masks, merge
from .step import Step

# Elements whose squares are summed in float32; rows are added in double precision. Norms of rows run at the speed of
# memory, a norm over everything at half of it, and `dot` stalls for milliseconds when other processes use the cores.
NORM_ROW = 2_048


@dataclass
class Sources:
    """Gradients of a launch: scattered (`grads`) or in the flat stream, for the variables that are touched."""

    grads: Sequence[Tensor | None]
    stream: Tensor | None
    touched: list[bool]
    runs: list[Loaded] = field(default_factory=list)
    # What was gathered for them all, in one piece: a norm takes it in one.
    scratch: Tensor | None = None

    def norm_pieces(self) -> Iterator[Tensor]:
        """The gradients in as few pieces as they come in, masked elements as zeros."""
        if self.scratch is not None:
            yield self.scratch
        for loaded in self.runs:
            if not loaded.gathered:
                yield from loaded.run.norm_pieces(loaded.grad)


class Plan:
    """Runs and counts of some variables of one region. Arguments as in `kernels/plan.py`."""

    backend = "torch"

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
        self.masks = find_masks(segments, frozen)
        self.device = device
        self.norm_out, self.sums, self.slot = norm, sums, slot
        self.counts = np.zeros(len(segments), dtype=np.int64)
        # Runs of the pattern of touched variables seen last: one for scattered gradients, one for the flat stream.
        self._pattern: list[bool] = []
        self._touched = np.zeros(0, dtype=np.int64)
        self._gather: Gather | None = None
        self._flat: list[Run] | None = None
        self._accumulation: Accumulation | None = None

    # Which gradients a launch reads -------------------------------------------------------------------------------

    def scattered(self, grads: Sequence[Tensor | None]) -> Sources:
        return self._load(Sources(grads, None, [grad is not None for grad in grads]))

    def gathered(self, stream: Tensor, touched: Sequence[bool]) -> Sources:
        return self._load(Sources([], stream, list(touched)))

    def _load(self, sources: Sources) -> Sources:
        """Points the runs of a launch at their gradients; here a gradient that cannot be read is refused."""
        if sources.touched != self._pattern:
            # Counts of touched and untouched variables part here: runs of the old pattern no longer agree.
            self._pattern, self._gather, self._flat = sources.touched, None, None
            self._touched = np.flatnonzero(sources.touched)
        if sources.stream is None:
            if self._gather is None:
                self._gather = Gather(self.segments, self._touched.tolist(), self.counts, self.masks)
            sources.runs = self._gather.load(sources.grads)
            sources.scratch = self._gather.scratch
        else:
            if self._flat is None:
                self._flat = merge(self.segments, self._touched.tolist(), self.counts, None, self.masks)
            sources.runs = [Loaded(run, run.of(sources.stream), gathered=False) for run in self._flat]
        return sources

    # Launches -----------------------------------------------------------------------------------------------------

    def norm_(self, sources: Sources, grad_scale: Tensor | None = None) -> None:
        """Writes the L2 norm of the gradients, divided by `grad_scale` if given, to `norm`."""
        self._write_norm(sources.norm_pieces(), 1.0 if grad_scale is None else float(grad_scale))

    def _write_norm(self, grads: Iterable[Tensor], grad_scale: float = 1.0) -> None:
        sums = self.sums.tolist()[: self.slot]
        square_sum = math.fsum(_square_sum(grad) for grad in grads) / grad_scale**2
        self.sums[self.slot] = square_sum
        self.norm_out.fill_(math.sqrt(square_sum + sum(sums)))

    def accumulate_(self, grads: Sequence[Tensor | None], stream: Tensor, scale: float, add: bool) -> None:
        """Gathers into the flat stream and writes the norm of what it then holds to `norm`."""
        touched = [grad is not None for grad in grads]
        if self._accumulation is None or not self._accumulation.fits(stream, touched):
            self._accumulation = Accumulation(self.segments, stream, touched, self.masks)
        self._accumulation.run(grads, scale, add)
        self._write_norm(piece for run in self._whole for piece in run.norm_pieces(run.of(stream)))

    @cached_property
    def _whole(self) -> list[Run]:
        """Runs over all variables, whatever their step counts."""
        return merge(self.segments, range(len(self.segments)), np.zeros(len(self.segments)), None, self.masks)

    def variable_norms(self, values: Tensor | None, sources: Sources | None, order: float) -> Tensor:
        """Norms of every variable, [variables, 2]: of its value and of its gradient; 0 for what is not given."""
        check_order(order)
        out = torch.zeros((len(self.segments), 2), dtype=self.segments.compute_dtype)
        for i, (start, numel) in enumerate(zip(self.segments.starts, self.segments.numels, strict=True)):
            if not numel:
                continue
            if values is not None:
                out[i, 0] = torch.linalg.vector_norm(values[start : start + numel], order, dtype=out.dtype)
            if sources is not None and sources.touched[i]:
                grad = self._source(sources, i)
                if i in self.masks:
                    grad = grad.masked_fill(self.masks[i], 0.0)
                out[i, 1] = torch.linalg.vector_norm(grad, order, dtype=torch.promote_types(out.dtype, grad.dtype))
        return out

    def _source(self, sources: Sources, i: int) -> Tensor:
        """One variable's gradient, [numel]."""
        segments = self.segments
        if sources.stream is not None:
            return sources.stream[segments.starts[i] : segments.starts[i] + segments.numels[i]]
        grad = sources.grads[i]
        assert grad is not None
        return flat(in_memory_order(segments.names[i], grad, segments.shapes[i], segments.strides[i]))

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
        """Updates values and states of all variables that have a gradient. Arguments as in `kernels/plan.py`."""
        if (skip and not math.isfinite(float(norm))) or (found_inf is not None and float(found_inf)):
            if self.slot == 0:
                skipped.add_(1)
            return
        runs = sources.runs
        coefficient = 1.0 if max_norm is None else clip_coefficient(norm, max_norm)
        if grad_scale is not None:
            coefficient /= float(grad_scale)
        for index in sorted({loaded.run.group for loaded in runs}):
            group = groups[index]
            chosen = [loaded for loaded in runs if loaded.run.group == index]
            step = Step(rule, group, coefficient, values, states, self.segments)
            step.apply(chosen, [int(self.counts[loaded.run.variables[0]]) + 1 for loaded in chosen])
        self.counts[self._touched] += 1

    # Counts -------------------------------------------------------------------------------------------------------

    def step_counts(self) -> Tensor:
        """Steps taken by each variable, [variables] int32."""
        return torch.from_numpy(self.counts).to(torch.int32)

    def load_step_counts(self, counts: Tensor) -> None:
        """Sets the steps taken, [variables] int32."""
        self.counts = counts.cpu().numpy().astype(np.int64)
        self._pattern, self._gather, self._flat = [], None, None


def _square_sum(grad: Tensor) -> float:
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    rows, rest = divmod(len(grad), NORM_ROW)
    norms = torch.linalg.vector_norm(grad[: len(grad) - rest].view(rows, NORM_ROW), dim=1, dtype=wide)
    tail = torch.linalg.vector_norm(grad[len(grad) - rest :], dtype=wide)
    return float(torch.linalg.vector_norm(norms, dtype=torch.float64)) ** 2 + float(tail) ** 2


def clip_coefficient(norm: Tensor, max_norm: float) -> float:
    """torch.nn.utils.clip_grad_norm_'s, in its own float32 arithmetic; NaN where the norm is NaN."""
    return float(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
