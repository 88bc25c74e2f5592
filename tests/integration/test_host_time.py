"""What a step and zero_grad cost the host: no call of Python per variable, and little more than reading `.grad`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bench.host import Stepping, host_costs
from flatvars.kernels import looks
from tests.parity.pairs import MODES


def calls_of(run: Callable[[], object]) -> int:
    """Calls that Python's bytecode makes, of functions and of builtins; loops inside of builtins are one."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("mode", MODES)
def test_no_call_per_variable(mode: str) -> None:
    found = []
    for count in (80, 450):  # fewer are looked at in Python
        stepping = Stepping(count, mode)
        stepping.give()
        found.append(calls_of(stepping.tail))
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", MODES)
def test_the_counter_sees_a_call_per_variable(mode: str) -> None:
    stepping = Stepping(50, mode)
    assert calls_of(lambda: [id(param) for param in stepping.params]) >= 50
    assert calls_of(lambda: list(map(id, stepping.params))) < 10


# In units of one reading of `.grad` of all variables; 5 to 7 and 4 to 7 on two cores that others used, and 12 with
# loops of Python's builtins over tensors, which remain where libtorch is not asked.
LIMITS = {"step and zero_grad": 10.0, "as views": 10.0}


def test_little_more_than_reading_gradients() -> None:
    """The best of several: a machine that is busy elsewhere makes none of them faster."""
    if looks._looks() is None:
        pytest.skip("tensors of this torch are looked at in Python")
    best = dict.fromkeys(LIMITS, math.inf)
    for _ in range(5):
        costs = host_costs(1_000, rounds=7)
        best = {what: min(ratio, costs[what] / costs["read .grad"]) for what, ratio in best.items()}
        if all(best[what] < limit for what, limit in LIMITS.items()):
            break
    assert all(best[what] < limit for what, limit in LIMITS.items()), best
