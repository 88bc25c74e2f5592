"""What a step costs the host per variable: with kernels that do nothing, and the parts that walk the variables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import flatvars as fv
from bench.cases.material import gradients, parameters
from bench.workloads import workload
from flatvars.gradients import plans
from flatvars.kernels.launches import Again, Tables
from flatvars.kernels.plan import Plan
from flatvars.kernels.segments import Segments

COUNTS = (10, 100, 1_000, 10_000)
BLOCK = 1_024  # elements of a tile


def nothing(norm: Tensor) -> None:
    """A launch that is made once more."""


class Idle:
    """Launches that do nothing."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def accumulate(self, *_: Any, **__: Any) -> Again:
        """Gathers nothing, and so again."""
        return nothing

    def norms(self, *_: Any) -> None:
        """Takes no norm."""

    def step(self, *_: Any) -> Again:
        """Steps nothing, and so again."""
        return nothing

    def written(self) -> Tensor:
        return torch.ones(len(self.tables.segments), dtype=torch.bool)


@contextmanager
def idle_kernels() -> Iterator[None]:
    """Plans that are made inside launch nothing."""

    def make(
        segments: Segments, device: torch.device, norm: Tensor, sums: Tensor, slot: int, frozen: Tensor | None
    ) -> Plan:
        return Plan(Idle(Tables(segments, device, BLOCK, frozen)), norm, sums, slot)

    with patch.object(plans, "make_plan", make):
        yield


class Stepping:
    """An optimizer over `count` variables of 16 elements, on the CPU, whose kernels are idle.

    Args:
        mode: "gather" or "views".
    """

    def __init__(self, count: int, mode: str) -> None:
        shapes = workload(f"{count}x16")
        self.params = parameters(shapes, "cpu")
        self.grads = gradients(shapes, "cpu")
        self.mode = mode
        self.optimizer = fv.optim.SGD(fv.VarStore.from_module(nn.ParameterList(self.params), grads=mode), lr=1e-3)
        with idle_kernels():
            for _ in range(2):
                self.give()
                self.tail()

    def give(self) -> None:
        """Leaves gradients as a backward pass does; the same tensors every time."""
        if self.mode == "views":
            torch._foreach_add_([param.grad for param in self.params], 1.0)
        else:
            for param, grad in zip(self.params, self.grads, strict=True):
                param.grad = grad

    def read(self) -> list[Tensor | None]:
        return [param.grad for param in self.params]

    def tail(self) -> None:
        self.optimizer.step(zero_grad=True)


def host_costs(count: int, rounds: int = 15) -> dict[str, float]:
    """Microseconds of a step and zero_grad in both modes, and of their parts."""
    gather, views = Stepping(count, "gather"), Stepping(count, "views")
    made = gather.optimizer._current_plans()
    parts: dict[str, tuple[Stepping, Callable[[], object]]] = {
        "read .grad": (gather, gather.read),
        "alias check": (gather, made.guard.check),
        "increment versions": (gather, lambda: torch.autograd.graph.increment_version(made.params)),
        "zero_grad": (gather, gather.optimizer.zero_grad),
        "step and zero_grad": (gather, gather.tail),
        "as views": (views, views.tail),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):  # in turns, since machines change their pace
        for name, (stepping, part) in parts.items():
            stepping.give()
            start = time.perf_counter()
            part()
            times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(each) for name, each in times.items()}


def table(counts: Iterable[int] = COUNTS) -> list[dict[str, float]]:
    """One line per number of variables."""
    return [{"variables": count, **host_costs(count)} for count in counts]
