"""What a step costs the host per variable: the parts of a step that Python walks the variables for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

import flatvars as fv
from bench.cases import make_grads, make_model


def host_costs(count: int, rounds: int = 15) -> dict[str, float]:
    """Microseconds per step and part, with `count` variables of 16 elements, on the CPU."""
    shapes: list[tuple[int, ...]] = [(16,)] * count
    model = make_model(shapes, "cpu")
    optimizer = fv.optim.SGD(fv.VarStore.from_module(model), lr=1e-3)
    params = list(model.parameters())
    grads = make_grads(shapes, "cpu")

    def give() -> None:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad

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


def table(counts: tuple[int, ...] = (10, 100, 1_000, 10_000)) -> list[dict[str, float]]:
    """One row per number of variables; prints it."""
    rows = []
    for count in counts:
        row = host_costs(count)
        rows.append({"variables": count, **row})
        print(f"{count:>6} variables: " + ", ".join(f"{name} {us:.1f} us" for name, us in row.items()), flush=True)
    return rows
