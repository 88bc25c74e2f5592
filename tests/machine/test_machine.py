"""Fixed sequences, as many as fit in half a minute on two cores.

`python -m tests machine --seed N --minutes M` explores others, and prints how to repeat what it finds.
"""

from __future__ import annotations

import os

import pytest

from tests.machine.machine import run_sequences

SEQUENCES = int(os.environ.get("FLATVARS_SEQUENCES", "100"))
SEEDS = range(4)
"""Each is a case of its own, so that they spread over the cores."""


@pytest.mark.parametrize("seed", SEEDS)
def test_sequences(seed: int) -> None:
    sequences = max(1, SEQUENCES // len(SEEDS))
    assert run_sequences(seed, sequences) >= sequences
