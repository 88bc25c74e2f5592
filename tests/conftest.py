"""What holds for every lane: random numbers repeat, and hypothesis neither hurries nor surprises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The interpreter takes 20 ms a tile: a deadline would measure the machine. `derandomize` keeps a red run red.
settings.register_profile("flatvars", deadline=None, derandomize=True)
settings.load_profile("flatvars")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
