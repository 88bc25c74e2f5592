"""The half hour on a GPU, as far as it can be had without one: parts that go on where a machine went away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import first_gpu
from bench.first_gpu import FAILED, MISSING, OK, STATE, Part, main, parts

ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three parts in place of the real ones; each run of one leaves a line in a file."""
    log = tmp_path / "log"

    def part(name: str, code: str, needs: str = "") -> Part:
        command = python(f"open({str(log)!r}, 'a').write({name!r} + chr(10)); {code}")
        return Part(name, f"about {name}", command, command, minutes=3, needs=needs)

    made = [
        part("good", "print('fine')"),
        part("bad", "raise SystemExit('broken')"),
        part("gone", "", "no-such-program"),
    ]
    monkeypatch.setattr(first_gpu, "parts", lambda out: made)
    monkeypatch.setattr(first_gpu, "has_gpu", lambda: True)
    return log


def test_a_part_that_fails_is_a_result_and_the_next_begins(three: Path, tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / STATE).read_text())["parts"]
    assert [one["status"] for one in found.values()] == [OK, FAILED, MISSING]
    assert "fine" in found["good"]["tail"]
    assert "broken" in found["bad"]["tail"]
    assert "no-such-program" in found["gone"]["tail"]


def test_what_is_known_is_not_run_again(three: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "first")])
    main(["--out", str(tmp_path / "second"), "--seen", str(tmp_path / "first"), "--again", "bad"])
    assert three.read_text().split() == ["good", "bad", "bad"]
    assert set(json.loads((tmp_path / "second" / STATE).read_text())["parts"]) == {"good", "bad", "gone"}


def test_no_part_begins_that_would_take_longer_than_is_left(three: Path, tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--minutes", "2"]) == 2
    assert not three.exists()


def test_without_a_gpu_it_says_how_to_try(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_gpu, "has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "--dry" in capsys.readouterr().err


def test_every_part_names_what_exists(tmp_path: Path) -> None:
    for part in parts(tmp_path):
        for word in (*part.command, *part.dry):
            if word.startswith("tests/"):
                assert (ROOT / word).exists(), part.name
        assert part.minutes <= first_gpu.MOST_MINUTES


@pytest.mark.process
def test_the_sweep_gives_the_same_bits_in_every_configuration(tmp_path: Path) -> None:
    """By Triton's interpreter, in which times mean nothing."""
    out = tmp_path / "sweep.json"
    command = [sys.executable, "-m", "bench.sweep", "--device", "cpu", "--on", "2x300", "--out", str(out)]
    command += ["--work", "lion", "--work", "norm", "--work", "accumulate add"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 10 + 17 + 17
    assert not [row for row in rows if row["reason"]]
