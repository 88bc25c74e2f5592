"""What holds for every lane: one thread, random numbers repeat, and hypothesis neither hurries nor surprises."""

from __future__ import annotations

import os

# Also for the processes that tests start, which is why it stands before torch. Two operators of a tiny step that wait
# for a busy core take a hundred times as long, and pytest's own workers keep the cores busy.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

# The interpreter takes 20 ms a tile: a deadline would measure the machine. `derandomize` keeps a red run red.
settings.register_profile("flatvars", deadline=None, derandomize=True)
settings.load_profile("flatvars")


@pytest.fixture(autouse=True)
def _start() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
