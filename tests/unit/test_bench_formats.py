"""`python -m bench.formats`: what it trains, what it names as not running, what it counts and shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.formats import figure, simulate
from bench.formats.job import joined, run
from bench.formats.sides import PEERS, tensors_in
from bench.formats.table import table
from bench.report.formats import formats_part
from bench.train.options import parse_job


def test_the_job_in_two_formats_beside_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own rows agree with ours; a library that fails is named with its error and takes no other along."""

    def failing(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        raise RuntimeError("needs a GPU\nand more words")

    monkeypatch.setitem(PEERS, "failing", ("torch", torch.float32, failing))
    job = replace(parse_job(["--quick", "--steps", "3"]), amp=False)
    result = run(job, ["float32", "corrected, root8", "torch fused, float32", "failing"], "a command")
    rows = {row["name"]: row for row in result["rows"]}
    assert result["failed"] == {"failing": "RuntimeError: needs a GPU"}
    assert rows["float32"]["loss"] == pytest.approx(rows["torch fused, float32"]["loss"], abs=1e-4)
    assert rows["torch fused, float32"]["bytes"] == pytest.approx(12.0, rel=0.01)
    assert 5.0 < rows["corrected, root8"]["bytes"] < 5.4
    text = table(result)
    assert "Did not run: failing: RuntimeError: needs a GPU" in text
    assert text.count("\n| ") == 4
    again = {**result, "rows": [rows["float32"], {**rows["corrected, root8"], "name": "other"}]}
    again["losses"] = {"float32": result["losses"]["float32"], "other": result["losses"]["float32"]}
    both = joined(result, again)
    assert [row["name"] for row in both["rows"]] == [*rows, "other"]
    assert both["losses"].keys() == {*rows, "other"}
    with pytest.raises(ValueError, match="not of the same job"):
        joined(result, {**again, "losses": {"float32": [1.0, 2.0, 3.0]}})
    (tmp_path / "small-cpu.json").write_text(json.dumps({**result, "ours": ["float32", "corrected, root8"]}))
    assert "](small-cpu.svg)" in formats_part(tmp_path, tmp_path)
    assert "Not measured yet" in formats_part(tmp_path / "none", tmp_path)


def test_means_of_losses_in_a_row() -> None:
    assert figure.smoothed([1.0] * 30 + [3.0] * 20)[-1] == 3.0
    assert len(figure.smoothed([1.0] * 25)) == 6
    assert figure.smoothed([1.0] * 3) == []


def test_tensors_are_found_wherever_an_optimizer_keeps_them() -> None:
    held = {"a": torch.zeros(2), "b": [torch.zeros(3), {"c": (torch.zeros(4), "text", 7)}]}
    assert [len(tensor) for tensor in tensors_in(held)] == [2, 3, 4]


def test_simulated_gradients_are_as_said() -> None:
    falling = list(simulate.gradients("falling by ten", 60))
    assert falling[0].shape == (simulate.ROWS, simulate.UNIT)
    assert torch.stack(falling[20:]).std() < 0.2 * torch.stack(falling[:20]).std()
    rows = torch.stack(list(simulate.gradients("rare rows", 200))).abs().amax(2) > 0.0
    assert 0.04 < rows.float().mean() < 0.06
    found = simulate.simulate("one scale", 3)
    assert found["root8"]["error"] < 0.1
    assert found["bfloat16, to nearest"]["error"] > 0.0
