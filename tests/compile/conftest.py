"""Compiled code for GPUs that are not here: `python -m pytest tests/compile`, without TRITON_INTERPRET."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lanes import HAS_TRITON, INTERPRETED, skipped_module


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not HAS_TRITON:
        return skipped_module(module_path, parent, "Triton is not installed")
    if INTERPRETED:
        return skipped_module(module_path, parent, "nothing is compiled under TRITON_INTERPRET=1: run without it")
    return None
