"""What a step costs the host per variable: the parts of a step that Python walks the variables for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

import flatvars as fv
from bench.cases.material import gradients, parameters
from bench.cases.optimizing import give_grads
from bench.workloads import workload

COUNTS = (10, 100, 1_000, 10_000)


def host_costs(count: int, rounds: int = 15) -> dict[str, float]:
    """Microseconds per step and part, with `count` variables of 16 elements, on the CPU."""
    shapes = workload(f"{count}x16")
    params = parameters(shapes, "cpu")
    optimizer = fv.optim.SGD(fv.VarStore.from_module(nn.ParameterList(params)), lr=1e-3)
    grads = gradients(shapes, "cpu")

    def give() -> None:
        give_grads(params, grads)

    give()
    optimizer.step()
    plans = optimizer._current_plans()
    parts: dict[str, Callable[[], object]] = {
        "read .grad": plans.pending,
        "alias check": plans.check,
        "increment versions": lambda: torch.autograd.graph.increment_version(plans.params),
        "zero_grad": optimizer.zero_grad,
    }
    return {name: _median(give, part, rounds) for name, part in parts.items()}


def _median(prepare: Callable[[], None], part: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        prepare()
        start = time.perf_counter()
        part()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def table(counts: Iterable[int] = COUNTS) -> list[dict[str, float]]:
    """One line per number of variables."""
    return [{"variables": count, **host_costs(count)} for count in counts]
