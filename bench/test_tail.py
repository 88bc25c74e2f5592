"""The end of a training step, side by side: `pytest bench/`. Ratios in one table: `python -m bench`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES, TAILS, gate, give_grads, make_grads


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    gate(CASES[name], "cpu")
    return name


@pytest.mark.parametrize("library", TAILS)
def test_tail(benchmark: BenchmarkFixture, case: str, library: str) -> None:
    benchmark.group = case
    tail = TAILS[library](CASES[case], "cpu")
    grads = make_grads(CASES[case], "cpu")
    # torch's clip rewrites gradients: both get their own, and both find them in memory that was just read.
    benchmark.pedantic(tail.run, setup=lambda: give_grads(tail, grads), rounds=10, warmup_rounds=2)
    assert all(param.grad is None for param in tail.params)
