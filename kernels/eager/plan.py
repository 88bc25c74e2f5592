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
from .accumulate import Accumulation
from .norms import norm_of, norms_of, square_sum
from .runs import Gather, Loaded, Run, find_masks, merge
from .step import Scratch, Step

Places = Sequence[int] | Mapping[int, int]  # by variable


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
        self._slots = np.array(segments.slots, dtype=np.int64)
        # Runs of the pattern of touched variables seen last: one for scattered gradients, one for the flat stream.
        self._pattern: list[bool] = []
        self._touched = np.zeros(0, dtype=np.int64)
        self._gather: Gather | None = None
        self._flat: list[Run] | None = None
        self._accumulation: Accumulation | None = None
        self._scratch = Scratch(segments.compute_dtype)

    # Which gradients a launch reads -------------------------------------------------------------------------------

    def scattered(self, grads: Sequence[Tensor | None]) -> Sources:
        return self._load(Sources(grads, None, [grad is not None for grad in grads]))

    def gathered(self, stream: Tensor, touched: Sequence[bool]) -> Sources:
        return self._load(Sources([], stream, list(touched)))

    def viewed(self, stream: Tensor, told: Sequence[bool] | None = None) -> Sources:
        """In the flat stream, of the variables of which an element is not -0.0; of those without elements by `told`."""
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[stream.element_size()]
        marks = (stream.view(bits) != torch.iinfo(bits).min).numpy()
        rows = zip(self.segments.starts, self.segments.numels, told or [False] * len(self.segments), strict=True)
        return self.gathered(stream, [bool(marks[a : a + n].any()) if n else known for a, n, known in rows])

    def written(self, sources: Sources) -> Tensor:
        """Which variables have a gradient, bool [variables]."""
        return torch.tensor(sources.touched, dtype=torch.bool)

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

    def upload_hyper(self, rule: Rule, groups: Sequence[Mapping[str, Any]], max_norm: float | None) -> None:
        """Nothing to do: numbers are read from the groups at every step."""

    # Launches -----------------------------------------------------------------------------------------------------

    def norm_(self, sources: Sources, grad_scale: Tensor | None = None) -> None:
        """Writes the L2 norm of the gradients, divided by `grad_scale` if given, to `norm`."""
        self._write_norm(sources.norm_pieces(), 1.0 if grad_scale is None else float(grad_scale))

    def _write_norm(self, grads: Iterable[Tensor], grad_scale: float = 1.0) -> None:
        sums = self.sums.tolist()[: self.slot]
        total = math.fsum([square_sum(grad) for grad in grads]) / grad_scale**2
        self.sums[self.slot] = total
        self.norm_out.fill_(math.sqrt(total + sum(sums)))

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
        segments = self.segments
        out = np.zeros((len(segments), 2))
        real = [i for i, numel in enumerate(segments.numels) if numel]
        if values is not None:
            _norms_into(out[:, 0], real, values, segments.starts, segments.nexts, order)
        if sources is not None:
            touched = [i for i in real if sources.touched[i] and i not in self.masks]
            if sources.stream is not None:
                _norms_into(out[:, 1], touched, sources.stream, segments.starts, segments.nexts, order)
            elif self._gather is not None:
                small = [i for i in self._gather.small if segments.numels[i]]
                _norms_into(out[:, 1], small, self._gather.scratch, *self._gather.places, order)
            alone = [x for x in sources.runs if not x.gathered and (sources.stream is None or x.run.mask is not None)]
            for loaded in alone:
                i, mask = loaded.run.variables[0], loaded.run.mask
                if segments.numels[i]:
                    grad = loaded.grad if mask is None else loaded.grad.masked_fill(mask, 0.0)
                    out[i, 1] = norm_of(grad, order)
        return torch.from_numpy(out).to(segments.compute_dtype)

    def step_(
        self,
        sources: Sources,
        rule: Rule,
        values: Tensor,
        states: Sequence[Tensor],
        groups: Sequence[Mapping[str, Any]],
        *,
        steps: Tensor,
        base: int = 0,
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
        counts = steps.numpy()[self._slots].astype(np.int64)
        if (counts != self.counts).any():
            self.counts, self._pattern = counts, []
            sources = self._load(sources)
        runs = sources.runs
        coefficient = 1.0 if max_norm is None else clip_coefficient(norm, max_norm)
        if grad_scale is not None:
            coefficient /= float(grad_scale)
        for index in sorted({loaded.run.group for loaded in runs}):
            group = groups[index]
            chosen = [loaded for loaded in runs if loaded.run.group == index]
            step = Step(rule, group, coefficient, values, states, self.segments, self._scratch, base)
            step.apply(chosen, [int(self.counts[loaded.run.variables[0]]) + 1 for loaded in chosen])
        self.counts[self._touched] += 1
        steps.numpy()[self._slots[self._touched]] += 1


def _norms_into(
    out: np.ndarray, chosen: Sequence[int], stream: Tensor, starts: Places, ends: Places, order: float
) -> None:
    if chosen:
        stops = [ends[i] for i in chosen]
        stops[-1] = min(stops[-1], stream.numel())  # gradients end where what is trained does
        out[chosen] = norms_of(stream, [starts[i] for i in chosen], stops, order)


def clip_coefficient(norm: Tensor, max_norm: float) -> float:
    """torch.nn.utils.clip_grad_norm_'s, in its own arithmetic: that of the norm's dtype; NaN where the norm is NaN."""
    number = np.float64 if norm.dtype == torch.float64 else np.float32
    # torch divides a number by a tensor as number * (1 / tensor).
    return float(np.minimum(number(max_norm) * (number(1.0) / (number(norm) + number(1e-6))), number(1.0)))
