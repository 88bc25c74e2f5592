"""The main job, small: it trains on real text with both libraries and writes what it found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from bench.train import pace
from bench.train.__main__ import main
from bench.train.options import FORMATS, parse_job
from bench.train.sides import build_sides
from bench.train.text import read_text
from flatvars.gradients.attached import ValueFormat
from flatvars.optim.formats import FormatName

ROOT = Path(__file__).parents[2]


def figures(out: Path) -> dict[str, Any]:
    (path,) = out.glob("*.json")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def train(out: Path, *options: str) -> dict[str, Any]:
    """A run of six steps in this process, from other random numbers than the last: a run brings its own."""
    torch.seed()
    assert main(["--quick", "--steps", "6", "--no-plot", "--out", str(out), *options]) == 0
    return figures(out)


@pytest.mark.process
def test_both_sides_learn_the_same(tmp_path: Path) -> None:
    """As the README calls it: a process of its own, which draws the plot too where matplotlib is."""
    command = [sys.executable, "-m", "bench.train", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = figures(tmp_path)
    assert result["agreement"]["first_loss_bit_equal"]
    assert result["agreement"]["largest_loss_difference"] < 1e-4
    for side in result["sides"].values():
        assert side["valid_bits_per_byte_after"] < 0.8 * side["valid_bits_per_byte_before"]
    many = result["many"]
    assert (many["tensors"], many["steps"]) == (52, 12)
    losses = [side["final_train_loss"] for side in many["sides"].values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(side["optimizer_ms"] > 0.0 for side in many["sides"].values())
    assert "A model of 52 small tensors" in done.stdout
    assert bool(list(tmp_path.glob("*.png"))) == (find_spec("matplotlib") is not None)


def test_a_busy_machine_takes_fewer_steps(tmp_path: Path) -> None:
    job = replace(parse_job(["--quick", "--out", str(tmp_path)]), steps=600, stop_at=600, paced=True)
    text, now = read_text(job.device), time.perf_counter()
    assert pace.affordable(job, text, now) > pace.FEWEST
    assert pace.affordable(job, text, now - pace.LIMIT) == pace.FEWEST  # none left: still enough for a median
    assert not parse_job(["--steps", "10"]).paced
    assert parse_job([]).paced


def test_options_work_together(tmp_path: Path) -> None:
    result = train(tmp_path, "--micro-batches", "2", "--freeze", "blocks.0.*", "--format", "bfloat16")
    assert 0.0 < result["agreement"]["largest_loss_difference"] < 1e-2
    assert list(tmp_path.glob("quick-cpu-bfloat16.json"))
    assert not list(tmp_path.glob("*.png"))


def test_every_format_has_a_name_and_makes_a_side() -> None:
    asked = {name: (values.get("values"), states.get("state_format")) for name, (values, states) in FORMATS.items()}
    assert {values for values, _ in asked.values()} == {None, *get_args(ValueFormat)}
    assert set(get_args(FormatName)) == {
        name
        for _, kept in asked.values()
        for name in ([] if kept is None else [kept] if isinstance(kept, str) else kept.values())
    }
    for name in FORMATS:
        (side,) = build_sides(parse_job(["--quick", "--only", "flatvars", "--format", name]))
        side.load_state_dict(side.state_dict())


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """With values of which the module shows half the bits."""
    stored = ("--format", "split-root8")
    whole = train(tmp_path / "whole", *stored)
    saved = str(tmp_path / "checkpoint.pt")
    train(tmp_path / "first", "--stop-at", "3", "--save", saved, *stored)
    resumed = train(tmp_path / "second", "--resume", saved, *stored)
    assert resumed["losses"] == whole["losses"]
    assert len(whole["losses"]["flatvars"]) == 6
