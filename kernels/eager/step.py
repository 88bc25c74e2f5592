"""One rule over some runs: through torch's fused operator where it fits, else the rule itself on chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..lang import eager_twin
from ..rules import Rule
from ..segments import Segments
from .runs import MASK_CHUNK, Loaded, Run

# Elements a rule works on at a time: its temporaries stay in cache.
RULE_CHUNK = 65_536
# Elements of a borrowed gradient that are scaled into scratch before a fused operator reads them: 4 MB, which stays in
# cache. Each chunk is two parallel regions that wait for every core to be free, so that smaller ones are slower.
CLIP_CHUNK = 1_048_576


class Scratch:
    """Memory that is kept from step to step: new pages cost more than what is written to them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype)

    def take(self, numel: int) -> Tensor:
        """[numel], of any content; the next call gives the same memory."""
        if self._memory.numel() < numel:
            self._memory = torch.empty(numel, dtype=self._memory.dtype)
        return self._memory[:numel]


class Step:
    """One param group's part of one step.

    Args:
        rule, group: What to compute, with which numbers.
        coefficient: Of clipping, multiplied to every gradient; the gradients themselves stay as they are.
        values, states: Streams of the region, updated in place.
        segments: To tell variables from padding.
        scratch: For scaled gradients.
    """

    def __init__(
        self,
        rule: Rule,
        group: Mapping[str, Any],
        coefficient: float,
        values: Tensor,
        states: Sequence[Tensor],
        segments: Segments,
        scratch: Scratch,
        base: int,
    ) -> None:
        self.base = base
        self.rule, self.group, self.coefficient = rule, group, coefficient
        self.values, self.states, self.segments, self.scratch = values, states, segments, scratch
        self.compute = segments.compute_dtype
        same = all(state.dtype == values.dtype for state in states)
        self.narrow = values.dtype != self.compute
        self.native = rule.native if same and (rule.native_narrow or not self.narrow) else None

    def _streams(self, run: Run) -> list[Tensor]:
        return [run.of(self.values), *(run.of(state, self.base) for state in self.states)]

    def apply(self, runs: list[Loaded], steps: list[int]) -> None:
        """Updates the runs; `steps` numbers this update of each, from 1."""
        tensors = {step: torch.scalar_tensor(float(step)) for step in set(steps)}
        whole: list[tuple[Loaded, Tensor]] = []
        for loaded, step in zip(runs, steps, strict=True):
            masked = loaded.run.mask is not None
            if self.native is None or loaded.grad.dtype != self.values.dtype or (masked and self.narrow):
                self._chunks_of_rule(loaded, float(step))
            elif loaded.run.mask is not None:
                self._masked_chunks(loaded, loaded.run.mask, tensors[step])
            elif self.coefficient == 1.0 or (loaded.gathered and self.compute == torch.float32):
                # The operators read their scale in float32, which is not enough for float64 gradients.
                whole.append((loaded, tensors[step]))
            else:
                self._scaled_chunks(loaded, tensors[step])
        if whole:
            self._call([loaded for loaded, _ in whole], [step for _, step in whole])
        # Where a rule or NaN makes something of the zeros between variables, they are put back.
        if self.native is None or self.group.get("eps") == 0.0 or math.isnan(self.coefficient):
            self._zero_padding([loaded.run for loaded in runs])

    def _call(self, runs: list[Loaded], steps: list[Tensor]) -> None:
        """One call of the fused operator over all runs; it may overwrite gradients only where they are scratch."""
        assert self.native is not None
        scale = None if self.coefficient == 1.0 else self._scale()
        states = [[loaded.run.of(state, self.base) for loaded in runs] for state in self.states]
        values = [loaded.run.of(self.values) for loaded in runs]
        self.native(values, [loaded.grad for loaded in runs], states, steps, self.group, scale)

    def _scale(self) -> Tensor:
        """What the operators divide gradients by."""
        return torch.scalar_tensor(1.0 / self.coefficient if self.coefficient else torch.inf)

    def _scaled_chunks(self, loaded: Loaded, step: Tensor) -> None:
        """The fused operator on a borrowed gradient, scaled chunk by chunk into scratch that stays in cache."""
        assert self.native is not None
        grad = loaded.grad
        scratch = self.scratch.take(min(CLIP_CHUNK, grad.numel()))
        scale = self._scale() if self.narrow else None  # inside the operator: a product would be rounded
        values, *states = [torch.split(stream, CLIP_CHUNK) for stream in self._streams(loaded.run)]
        for k, chunk in enumerate(torch.split(grad, CLIP_CHUNK)):
            if self.narrow:
                scaled = scratch.view(grad.dtype)[: len(chunk)].copy_(chunk)
            else:
                scaled = torch.mul(chunk, self.coefficient, out=scratch[: len(chunk)])
            self.native([values[k]], [scaled], [[state[k]] for state in states], [step], self.group, scale)

    def _masked_chunks(self, loaded: Loaded, masks: Tensor, step: Tensor) -> None:
        """The fused operator on everything, chunk by chunk; what is masked is put back."""
        assert self.native is not None
        streams = [torch.split(stream, MASK_CHUNK) for stream in self._streams(loaded.run)]
        for k, (chunk, mask) in enumerate(
            zip(*(torch.split(x, MASK_CHUNK) for x in (loaded.grad, masks)), strict=True)
        ):
            grad = chunk if self.coefficient == 1.0 else chunk * self.coefficient
            value, *states = [stream[k] for stream in streams]
            kept = [stored.clone() for stored in (value, *states)]
            self.native([value], [grad], [[state] for state in states], [step], self.group, None)
            for stored, old in zip((value, *states), kept, strict=True):
                torch.where(mask, old, stored, out=stored)

    def _chunks_of_rule(self, loaded: Loaded, step: float) -> None:
        function = eager_twin(self.rule.function)
        hyper = tuple(float(x) for x in self.rule.hyper(self.group))
        streams = [torch.split(stream, RULE_CHUNK) for stream in self._streams(loaded.run)]
        masks = [] if loaded.run.mask is None else torch.split(loaded.run.mask, RULE_CHUNK)
        for k, chunk in enumerate(torch.split(loaded.grad, RULE_CHUNK)):
            stored = [stream[k] for stream in streams]
            value, *states = [x.to(self.compute) for x in stored]
            grad = chunk.to(self.compute)
            grad = grad if self.coefficient == 1.0 else grad * self.coefficient
            value, states = function(value, grad, tuple(states), hyper, step)
            for target, result in zip(stored, (value, *states), strict=True):
                target.copy_(torch.where(masks[k], target, result.to(target.dtype)) if masks else result)

    def _zero_padding(self, runs: list[Run]) -> None:
        for run in runs:
            padding = run.padding(self.segments)
            if len(padding):
                for stream in self._streams(run):
                    stream.index_fill_(0, padding, 0.0)
