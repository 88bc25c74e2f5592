"""One rule over some runs: through torch's fused operator where it fits, else the rule itself on chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..lang import eager_twin
from ..rules import Rule
from ..segments import Segments
from .runs import Run

# Elements a rule works on at a time: its temporaries stay in cache.
RULE_CHUNK = 65_536
# Elements of a borrowed gradient that are scaled into scratch before a fused operator reads them.
CLIP_CHUNK = 262_144


class Step:
    """One param group's part of one step.

    Args:
        rule, group: What to compute, with which numbers.
        coefficient: Of clipping, multiplied to every gradient; the gradients themselves stay as they are.
        values, states: Streams of the region, updated in place.
        segments: To tell variables from padding.
    """

    def __init__(
        self,
        rule: Rule,
        group: Mapping[str, Any],
        coefficient: float,
        values: Tensor,
        states: Sequence[Tensor],
        segments: Segments,
    ) -> None:
        self.rule, self.group, self.coefficient = rule, group, coefficient
        self.values, self.states, self.segments = values, states, segments
        self.compute = segments.compute_dtype
        same = all(state.dtype == values.dtype for state in states) and values.dtype == self.compute
        self.native = rule.native if same else None

    def apply(self, runs: list[Run], steps: list[int]) -> None:
        """Updates the runs; `steps` numbers this update of each, from 1."""
        tensors = {step: torch.tensor(float(step)) for step in set(steps)}
        whole: list[tuple[Run, Tensor]] = []
        for run, step in zip(runs, steps, strict=True):
            assert run.grad is not None
            if self.native is None or run.grad.dtype != self.values.dtype:
                self._chunks_of_rule(run, float(step))
            elif self.coefficient == 1.0 or (run.owned and self.compute == torch.float32):
                # The operators read their scale in float32, which is not enough for float64 gradients.
                whole.append((run, tensors[step]))
            else:
                self._scaled_chunks(run, tensors[step])
        if whole:
            self._call([run for run, _ in whole], [step for _, step in whole])
        if self.native is None or self.group.get("eps") == 0.0:
            self._zero_padding(runs)

    def _call(self, runs: list[Run], steps: list[Tensor]) -> None:
        """One call of the fused operator over all runs; it may overwrite gradients only where they are scratch."""
        assert self.native is not None
        scale = (
            None if self.coefficient == 1.0 else torch.tensor(1.0 / self.coefficient if self.coefficient else torch.inf)
        )
        states = [[run.of(state) for run in runs] for state in self.states]
        grads = [run.grad for run in runs]
        self.native([run.of(self.values) for run in runs], grads, states, steps, self.group, scale)

    def _scaled_chunks(self, run: Run, step: Tensor) -> None:
        """The fused operator on a borrowed gradient, scaled chunk by chunk into scratch that stays in cache."""
        assert self.native is not None
        assert run.grad is not None
        scratch = torch.empty(min(CLIP_CHUNK, len(run.grad)), dtype=run.grad.dtype)
        values, states = run.of(self.values), [run.of(state) for state in self.states]
        for first in range(0, len(run.grad), CLIP_CHUNK):
            chunk = slice(first, min(first + CLIP_CHUNK, len(run.grad)))
            grad = torch.mul(run.grad[chunk], self.coefficient, out=scratch[: chunk.stop - first])
            self.native([values[chunk]], [grad], [[state[chunk]] for state in states], [step], self.group, None)

    def _chunks_of_rule(self, run: Run, step: float) -> None:
        assert run.grad is not None
        function = eager_twin(self.rule.function)
        hyper = tuple(float(x) for x in self.rule.hyper(self.group))
        streams = [run.of(self.values), *(run.of(state) for state in self.states)]
        for first in range(0, len(run.grad), RULE_CHUNK):
            chunk = slice(first, min(first + RULE_CHUNK, len(run.grad)))
            stored = [stream[chunk] for stream in streams]
            value, *states = [x.to(self.compute) for x in stored]
            grad = run.grad[chunk].to(self.compute) * self.coefficient
            value, states = function(value, grad, tuple(states), hyper, step)
            for target, result in zip(stored, (value, *states), strict=True):
                target.copy_(result)

    def _zero_padding(self, runs: list[Run]) -> None:
        for run in runs:
            padding = run.padding(self.segments)
            if len(padding):
                for stream in (self.values, *self.states):
                    run.of(stream).index_fill_(0, padding, 0.0)
