"""What holds for every lane: one thread, random numbers repeat, and hypothesis neither hurries nor surprises."""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from pathlib import Path

# Also for the processes that tests start, which is why it stands before torch. Two operators of a tiny step that wait
# for a busy core take a hundred times as long, and pytest's own workers keep the cores busy.
os.environ["OMP_NUM_THREADS"] = "1"
# Of all lanes, workers and processes of tests: what one of them compiles the others load.
os.environ.setdefault("FLATVARS_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "machine_code"))

import pytest
import torch
from hypothesis import settings

# The interpreter takes 20 ms a tile: a deadline would measure the machine. `derandomize` keeps a red run red.
settings.register_profile("flatvars", deadline=None, derandomize=True)
settings.register_profile("fast", settings.get_profile("flatvars"), max_examples=10)
settings.load_profile("flatvars")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases", type=int, metavar="N", help="no more than N cases of each test, spread over all of them"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most = config.getoption("--cases")
    if not most:
        return
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    kept = {
        cases[len(cases) * i // most if len(cases) > most else i]
        for cases in tests.values()
        for i in range(min(most, len(cases)))
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(autouse=True, scope="module")
def _young_heap() -> None:
    """What compilers have left by now stays: every later collection would go through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _start() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
