"""A plan over some shapes with guarded streams: what the tests of the kernels drive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from flatvars.backend import backend_for
from flatvars.kernels.formats import Stored
from flatvars.kernels.plan import Plan
from flatvars.kernels.rules import Rule
from flatvars.kernels.segments import Segments
from flatvars.memory.layout import plan_layout
from flatvars.memory.spec import VarSpec

from .memory import Guarded

Shape = tuple[int, ...]
CPU = torch.device("cpu")


def lay_out(
    shapes: Sequence[Shape],
    dtype: torch.dtype = torch.float32,
    strides: Sequence[Shape] | None = None,
    groups: Sequence[int] | None = None,
) -> tuple[Segments, int]:
    """Segments of these variables, in this order, and the elements of their region with padding."""
    strides = strides or [()] * len(shapes)
    specs = [VarSpec(f"v{i}", s, dtype, t) for i, (s, t) in enumerate(zip(shapes, strides, strict=True))]
    layout = plan_layout(specs)
    order, segments = layout.segments(range(len(specs)), groups)
    assert order == list(range(len(specs)))
    return segments, layout.regions[0].numel


def plan_of(backend: str, segments: Segments, device: torch.device, frozen: Tensor | None, *out: Any) -> Plan:
    """The plan of a backend; imported here, so that a process without Triton can use the other."""
    launches = import_module(f"flatvars.kernels.{backend}.launches")
    return Plan(launches.bind(segments, device, frozen), *out)


class Rig:
    """Streams over a few variables, and the plan that works on them.

    Args:
        shapes, dtype, strides, groups: Of the variables, in the order of their offsets.
        rule: Decides how many state streams there are.
        state_dtype: Of those; `dtype` if not given.
        masks: Of the variables, bool [shape]: True trains; None where all of one does.
        fill: Whether values and states start as random numbers (states positive, as averages of squares are).
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        dtype: torch.dtype = torch.float32,
        *,
        rule: Rule | None = None,
        strides: Sequence[Shape] | None = None,
        groups: Sequence[int] | None = None,
        state_dtype: torch.dtype | None = None,
        masks: Sequence[Tensor | None] | None = None,
        backend: str | None = None,
        device: torch.device = CPU,
        fill: bool = True,
    ) -> None:
        self.segments, self.numel = lay_out(shapes, dtype, strides, groups)
        self.dtype, self.device, self.rule = dtype, device, rule
        self.compute = self.segments.compute_dtype
        self.norm = torch.zeros((), dtype=self.compute, device=device)
        self.skipped = torch.zeros((), dtype=torch.int32, device=device)
        sums = torch.zeros(1, dtype=torch.float64, device=device)
        self.frozen = None if masks is None else self._frozen(masks)
        self.plan = plan_of(backend or backend_for(device), self.segments, device, self.frozen, self.norm, sums, 0)
        self.steps = torch.zeros(len(shapes), dtype=torch.float32, device=device)
        self.values = Guarded(self.numel, dtype, device)
        self.grads = Guarded(self.numel, self.compute, device)
        names = rule.states if rule is not None else ()
        self.states = [Guarded(self.numel, state_dtype or dtype, device) for _ in names]
        # What nobody has set yet may be anything.
        self.own = [torch.full_like(self.steps, torch.nan) for _ in (rule.own if rule is not None else ())]
        if fill:
            for span in self.spans(self.values.stream):
                span.copy_(torch.randn(span.shape))
            for state in self.states:
                for span in self.spans(state.stream):
                    span.copy_(torch.rand(span.shape))

    def _frozen(self, masks: Sequence[Tensor | None]) -> Tensor:
        frozen = torch.zeros(self.numel, dtype=torch.uint8, device=self.device)
        for i, mask in enumerate(masks):
            if mask is not None:
                shape, stride = self.segments.shapes[i], self.segments.strides[i]
                frozen.as_strided(shape, stride, self.segments.starts[i]).copy_(~mask)
        return frozen

    def spans(self, stream: Tensor) -> list[Tensor]:
        """The elements of every variable in memory order, [numel] each."""
        pairs = zip(self.segments.starts, self.segments.numels, strict=True)
        return [stream[start : start + numel] for start, numel in pairs]

    def copies(self, stream: Tensor) -> list[Tensor]:
        """The same as float64 copies on the CPU, for the truth to start from."""
        return [span.detach().cpu().double().clone() for span in self.spans(stream)]

    def random_grads(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """A gradient of every variable, in its memory order."""
        pairs = zip(self.segments.shapes, self.segments.strides, strict=True)
        return [
            torch.empty_strided(shape, stride, dtype=dtype or self.dtype, device=self.device).copy_(torch.randn(shape))
            for shape, stride in pairs
        ]

    def step(
        self,
        grads: Sequence[Tensor | None],
        groups: Sequence[Mapping[str, Any]],
        *,
        max_norm: float | None = None,
        skip: bool = False,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
        observed: Tensor | None = None,
        keys: Tensor | None = None,
        at_random: bool = False,
    ) -> None:
        """One step from scattered gradients, with a norm launch where clipping or skipping needs one.

        Args:
            keys: Of what is rounded at random; states, and values if they are so (`at_random`).
        """
        assert self.rule is not None
        sources = self.plan.scattered(grads)
        if max_norm is not None or skip:
            self.plan.norm_(sources, grad_scale)
        self.plan.step_(
            sources,
            self.rule,
            Stored(self.values.stream, at_random=True) if at_random else self.values.stream,
            [state.stream for state in self.states],
            groups,
            steps=self.steps,
            norm=self.norm,
            max_norm=max_norm,
            skip=skip,
            skipped=self.skipped,
            grad_scale=grad_scale,
            found_inf=found_inf,
            own=self.own,
            observed=observed,
            keys=keys,
        )

    def accumulate(self, grads: Sequence[Tensor | None], scale: float = 1.0, *, add: bool = False) -> None:
        self.plan.accumulate_(grads, self.grads.stream, scale, add)

    def snapshot(self) -> list[Tensor]:
        """Copies of everything a step may write, guards and padding included."""
        streams = [guarded.storage for guarded in self.guarded()]
        return [tensor.clone() for tensor in (*streams, self.steps, self.skipped, *self.own)]

    def guarded(self) -> list[Guarded]:
        return [self.values, *self.states, self.grads]

    def assert_clean(self) -> None:
        """Fails if memory around a stream was written, or padding is not zero."""
        padding = torch.ones(self.numel, dtype=torch.bool, device=self.device)
        for span in self.spans(padding):
            span.fill_(False)
        for guarded in self.guarded():
            guarded.assert_intact()
            assert bool((guarded.stream[padding] == 0).all()), "padding is not zero"


def memory_order(grad: Tensor, segments: Segments, index: int) -> Tensor:
    """A gradient's elements in its variable's memory order, [numel], on the CPU in float64."""
    shape, stride = segments.shapes[index], segments.strides[index]
    dense = grad.detach().cpu().to_dense() if grad.layout != torch.strided else grad.detach().cpu()
    ordered = torch.empty_strided(shape, stride, dtype=torch.float64).copy_(dense)
    return ordered.as_strided((ordered.numel(),), (1,))
