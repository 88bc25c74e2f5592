"""Which lane this process is: Triton decides at its first import whether kernels are interpreted or compiled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

HAS_TRITON = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


class SkippedModule(pytest.Module):
    """A test file that is not even imported; its one line in the report says why."""

    reason = ""

    def collect(self) -> Iterable[pytest.Item]:
        pytest.skip(self.reason, allow_module_level=True)


def skipped_module(path: Path, parent: pytest.Collector, reason: str) -> pytest.Module:
    """For `pytest_pycollect_makemodule` of a directory whose lane this process is not."""
    module: SkippedModule = SkippedModule.from_parent(parent, path=path)
    module.reason = reason
    return module
