"""The main job, small: it trains on real text with both libraries and writes what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# The model is tiny: with a second thread most of the time would go into waking it.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.train", "--quick", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (figures,) = out.glob("*.json")
    result: dict[str, Any] = json.loads(figures.read_text())
    return result


@pytest.mark.slow
def test_both_sides_learn_the_same(tmp_path: Path) -> None:
    result = train(tmp_path)
    assert result["agreement"]["first_loss_bit_equal"]
    assert result["agreement"]["largest_loss_difference"] < 1e-4
    for side in result["sides"].values():
        assert side["valid_bits_per_byte_after"] < 0.8 * side["valid_bits_per_byte_before"]
    assert list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_options_work_together(tmp_path: Path) -> None:
    result = train(tmp_path, "--micro-batches", "2", "--freeze", "blocks.0.*", "--steps", "6", "--no-plot")
    assert result["agreement"]["largest_loss_difference"] < 1e-4
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    run = ("--steps", "6", "--no-plot")
    whole = train(tmp_path / "whole", *run)
    saved = str(tmp_path / "checkpoint.pt")
    train(tmp_path / "first", *run, "--stop-at", "3", "--save", saved)
    resumed = train(tmp_path / "second", *run, "--resume", saved)
    assert resumed["losses"] == whole["losses"]
    assert len(whole["losses"]["flatvars"]) == 6
