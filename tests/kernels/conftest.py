"""The kernels themselves: on CPU tensors by both compilers (Triton's in its interpreter), or, unchanged, on a GPU.

TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flatvars.backend import use_backend
from tests.support.lanes import HAS_TRITON, INTERPRETED, skipped_module

HERE = Path(__file__).parent
ON_GPU = not INTERPRETED and torch.cuda.is_available()

if HAS_TRITON and INTERPRETED:
    from tests.support.interpreter import replace_words_once

    replace_words_once()


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not HAS_TRITON:
        return skipped_module(module_path, parent, "Triton is not installed")
    if not INTERPRETED and not ON_GPU:
        return skipped_module(module_path, parent, "no GPU: run TRITON_INTERPRET=1 python -m pytest tests/kernels")
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ON_GPU and HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if ON_GPU else torch.device("cpu")


# What runs on host memory, both compilers run, and to the same bits.
BACKENDS = ["triton"] if ON_GPU else ["triton", "cpu"]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test of this folder runs once for each; a file about one of them defines a fixture of this name."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _quiet_numpy() -> Iterator[None]:
    # The interpreter computes with numpy, which warns of log(0) and inf - inf; hardware has no such opinion.
    with np.errstate(all="ignore"):
        yield
