"""All checks of many ranks, on 2, 3 and 4: processes, because gloo's ranks are processes, forked from one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .launch import run

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed"),
]

CHECKS = (
    "steps",
    "overlap",
    "overlap_when",
    "overlap_use",
    "events",
    "alone",
    "checkpoints",
    "shards",
    "files",
    "formats",
    "matrices",
    "family",
    "job",
)


def test_ranks_are_one_process(tmp_path: Path) -> None:
    """Each check is a function of the modules in `CHECKS`; its name and the rank stand before what it raised."""
    failed = run(tmp_path, (2, 3, 4), *CHECKS)
    assert not failed, "\n".join(f"{name}\n{text}" for name, text in failed.items())
