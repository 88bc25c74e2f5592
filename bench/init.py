"""Initialization side by side: one launch per dtype against the loop of torch.nn.init calls over the same module."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv
from bench.cases import CASES, Shapes
from bench.measure import time_in_turn

STD = 0.02
NAMES = ("1000x1024", "gpt2-95M")
QUICK_NAMES = ("1000x1024",)
# Five standard errors of a mean or of a standard deviation.
SIGMAS = 5.0


def make_module(shapes: Shapes, device: str) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(shape, device=device)) for shape in shapes)


def flatvars_init(params: nn.ParameterList) -> Callable[[], None]:
    """Adopts the module, which is not timed; every run draws all of it again."""
    fv.VarStore.from_module(params)
    return partial(fv.init.apply_, params, {"*": fv.init.normal(std=STD)})


def torch_init(params: nn.ParameterList) -> Callable[[], None]:
    def run() -> None:
        for param in params:
            nn.init.normal_(param, std=STD)

    return run


LIBRARIES = {"torch": torch_init, "flatvars": flatvars_init}


def check_moments(values: Tensor, std: float) -> None:
    """Raises AssertionError if mean or standard deviation are not those of N(0, std^2); no time is reported then."""
    n = values.numel()
    mean, spread = values.double().mean().item(), values.double().std().item()
    assert abs(mean) <= SIGMAS * std / math.sqrt(n), f"the mean is {mean:.2e}, so no time is reported"
    assert abs(spread - std) <= SIGMAS * std / math.sqrt(2 * n), f"std is {spread:.5f}, so no time is reported"


def measure(names: list[str], device: str, rounds: int) -> list[dict[str, Any]]:
    """One row per case; prints it."""
    rows = []
    for name in names:
        modules = {library: make_module(CASES[name], device) for library in LIBRARIES}
        runs = {library: make(modules[library]) for library, make in LIBRARIES.items()}
        for library, run in runs.items():
            run()
            check_moments(torch.cat([param.detach().flatten() for param in modules[library]]), STD)
        nothing = [lambda: None] * len(runs)
        timings = dict(zip(runs, time_in_turn(nothing, list(runs.values()), rounds, device), strict=True))
        row: dict[str, Any] = {"case": name}
        for library, timing in timings.items():
            row |= {f"{library}_ms": timing.total_ms, f"{library}_host_ms": timing.host_ms}
            row[f"{library}_spread"] = timing.spread
        row["ratio"] = row["torch_ms"] / row["flatvars_ms"]
        rows.append(row)
        print(
            f"init {name:<14} flatvars {row['flatvars_ms']:9.3f} ms (host {row['flatvars_host_ms']:.3f})   "
            f"torch {row['torch_ms']:9.3f} ms (host {row['torch_host_ms']:.3f})   {row['ratio']:6.2f}x",
            flush=True,
        )
    return rows
