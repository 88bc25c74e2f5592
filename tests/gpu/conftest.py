"""What only a GPU can show. The kernels' own tests run there too: `python -m pytest tests/kernels tests/gpu`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.lanes import HAS_TRITON, INTERPRETED, skipped_module

HERE = Path(__file__).parent


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not HAS_TRITON:
        return skipped_module(module_path, parent, "Triton is not installed")
    if INTERPRETED:
        return skipped_module(module_path, parent, "TRITON_INTERPRET=1 keeps kernels off the GPU: run without it")
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch.cuda.is_available() is false"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def alone() -> Iterator[None]:
    """One worker at a time: what is free for one is not free for two."""
    import fcntl  # here: elsewhere than on Linux, where no Triton is, there may be none

    with (Path(tempfile.gettempdir()) / "flatvars-tests-gpu-memory").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()
