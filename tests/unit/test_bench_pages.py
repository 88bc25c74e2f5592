"""What is made of results: files, the page, figures, comparisons. The page must be what the results say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import plot
from bench.__main__ import main
from bench.compare import changes, report
from bench.harness.record import Results, Row, compare_peers
from bench.peers import OURS, PEERS
from bench.report import readme
from bench.report.headline import headline
from bench.report.summary import TARGETS, averages, losses
from bench.report.table import print_cell, print_summary
from bench.report.trained import trained_part

ROOT = Path(__file__).parents[2]
MACHINE = {
    "date": "2020-01-01",
    "command": "python -m bench",
    "commit": "abc",
    "device": "cpu",
    "processor": "a processor",
    "torch": "2",
    "triton": "3",
    "python": "3",
}


def row(peer: str, ms: float | None, on: str = "10x100", **other: object) -> Row:
    count, numel = map(int, on.split("x"))
    made = Row(
        "tail", "adamw", on, "float32", count * numel, count, 1, peer, "1.0", like="float32", wall_ms=ms, spread=0.01
    )
    made.times = [] if ms is None else [ms, ms]
    made.gb_per_s, made.bytes_per_param, made.peak_bytes_per_param, made.host_ms = 5.0, 16.0, 20.0, ms
    return replace(made, **other)


@pytest.fixture
def results() -> Results:
    rows = [
        row("copy", 1.0, like="no state"),
        row("flatvars", 2.0),
        row("torch fused", 6.0),
        row("optimi", 4.0),
        row("torchao 8", 0.5, like="8-bit"),
        row("heavyball", None, status="failed", reason="its process ended"),
        row("flatvars", 3.0, "1x1024"),
        row("torch fused", 1.5, "1x1024"),
    ]
    compare_peers(rows, OURS)
    return Results(dict(MACHINE), rows, [{"variables": 10, "zero_grad": 1.5}])


@pytest.fixture
def folder(results: Results, tmp_path: Path) -> Path:
    results.save(tmp_path, "2020-01-01-cpu")
    return tmp_path


def test_ratios_are_among_like_formats(results):
    ours = results.rows[1]
    assert (ours.best_peer, ours.best_ratio, ours.fused_ratio) == ("optimi", 2.0, 3.0)


def test_average_beside_worst_and_losses_shown(results):
    best, fused = averages(results.rows)
    assert (best.ours, best.rows, best.worst, best.worst_on) == ("flatvars", 2, 0.5, "adamw 1x1024")
    assert best.mean == pytest.approx(1.0)
    assert fused.mean == pytest.approx((3.0 * 0.5) ** 0.5)
    assert [lost.on for lost in losses(results.rows)] == ["1x1024"]


def test_files_come_back_as_they_were(results, folder):
    path = folder / "2020-01-01-cpu.json"
    assert Results.load(path) == results
    lines = (folder / "2020-01-01-cpu.csv").read_text().splitlines()
    assert len(lines) == 1 + len(results.rows)
    assert lines[0].startswith("case,optimizer,on,format,elements")
    # A round's time is in the JSON alone.
    assert "times" not in lines[0]
    assert all(line.count(",") == lines[0].count(",") for line in lines)
    path.write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match="format 1"):
        Results.load(path)


@pytest.mark.parametrize("without_rich", [False, True])
def test_tables_are_printed_with_and_without_rich(results, without_rich, monkeypatch, capsys):
    if without_rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
        monkeypatch.setitem(sys.modules, "rich.table", None)
    print_cell(results.rows[:6])
    print_summary(results)
    out = capsys.readouterr().out
    for text in ("flatvars", "failed: its process ended", "0.50x", "Averages", "Lost"):
        assert text in out
    assert "Aims" not in out


def test_aims_are_read_from_rows():
    tail = row("flatvars", 0.05, "1000x1024", fused_ratio=6.0, best_ratio=1.2)
    step = row("flatvars", 1.0, f"1x{10**8}", case="step", of_copy=0.5)
    measured = [target.measured([tail, step]) for target in TARGETS]
    assert measured == [0.5, None, None, None, 6.0, None, 1.2, 0.05]
    reached = [target.reached(value) for target, value in zip(TARGETS, measured, strict=True) if value is not None]
    assert reached == [False, True, True, True]


# The page


@pytest.mark.parametrize("path", readme.PAGES, ids=["bench", "front"])
def test_the_pages_are_what_the_committed_results_say(path):
    text = path.read_text()
    assert "<!-- generated: " in text
    assert readme.page(text) == text, f"{path} is not what bench/results says: run python -m bench readme"


def test_committed_figures_are_those_of_the_committed_results():
    for device in readme.NAMES:
        results = readme.newest(readme.FOLDER, device)
        assert results is None or plot.is_current(results), f"{results}: run python -m bench readme"


def test_the_page_shows_results_and_is_idempotent(folder):
    text = (
        "before\n<!-- generated: cpu -->\nold\n<!-- end -->\nbetween\n<!-- generated: cuda -->\n<!-- end -->\nafter\n"
    )
    once = readme.page(text, folder)
    assert readme.page(once, folder) == once
    assert "old" not in once
    shown = ("3.00x", "optimi 4", "2.00x (2.00 to 2.00)", "0.50 to 0.50", "failed, its process ended")
    for part in ("before", "between", "after", *shown, "not measured yet"):
        assert part in once
    assert once.count("Not measured yet") == 1


def test_the_front_page_shows_rows_that_are_lost_too(folder, results):
    results.rows += [row("flatvars", 2.0, "1000x1024"), row("torch fused", 1.0, "1000x1024")]
    compare_peers(results.rows, OURS)
    results.save(folder, "2020-01-01-cpu")
    (folder / "train").mkdir()
    sides = {"torch": {"optimizer_ms": 3.0}, "flatvars": {"optimizer_ms": 2.0}}
    job = {"parameters": 1000, "sides": sides, "many": {"parameters": 10, "sides": sides}}
    (folder / "train" / "small-cpu.json").write_text(json.dumps(job))
    text = headline([folder / "2020-01-01-cpu.json"], folder / "train", folder)
    assert "| the same: 1,000 tensors of 1,024 | 1 | 2 | 0.50 |" in text
    assert text.count("| 3 | 2 | 1.50 |") == 2
    assert "a processor; torch 2, 2020-01-01, `python -m bench`" in text
    assert "](plots/2020-01-01-cpu-tensors.svg)" in text
    assert "Not measured yet" in headline([], folder, folder)


def test_the_page_tells_of_the_main_job(tmp_path):
    side = {"optimizer_ms": 3.0, "step_ms": None, "optimizer_work_count": 700, "valid_bits_per_byte_after": 2.5}
    sides = {"torch": side, "flatvars": {**side, "optimizer_ms": 2.0, "optimizer_work_count": 7}}
    job = {
        "date": "2020-01-01T00:00:00+00:00",
        "machine": {"gpu": None, "cpu": "a processor", "torch_threads": 2, "torch": "2"},
        "command": "python -m bench.train",
        "steps": 60,
        "total_seconds": 100.4,
        "agreement": {"first_loss_bit_equal": True, "largest_loss_difference": 1e-5},
        "work_unit": "operators run",
        "parameters": 1000,
        "sides": sides,
    }
    (tmp_path / "small-cpu.json").write_text(json.dumps({**job, "many": {**job, "tensors": 1002}}))
    (tmp_path / "one-side.json").write_text(json.dumps({**job, "sides": {"torch": side}}))
    text = trained_part(tmp_path)
    assert "a processor, 2 threads; torch 2; `python -m bench.train`: 60 steps, 100 s in all" in text
    assert "| GPT: 1,000 parameters | optimizer part, milliseconds | 3 | 2 | 1.50x |" in text
    assert "| small tensors: 1,002 tensors, 1,000 parameters | optimizer part, milliseconds | 3 | 2 | 1.50x |" in text
    assert text.count("operators run | 700 | 7 | 100.00x") == 2
    assert "Not measured yet" in trained_part(tmp_path / "none")


def test_the_page_follows_the_results(folder, results):
    text = "<!-- generated: cpu -->\n<!-- end -->\n"
    before = readme.page(text, folder)
    results.rows[1].wall_ms = 2.5
    results.save(folder, "2020-01-01-cpu")
    assert readme.page(before, folder) != before


def test_the_newest_results_count_and_quick_ones_do_not(folder, results):
    results.save(folder, "2021-01-01-cpu")
    results.save(folder, "2022-01-01-cpu-quick")
    assert readme.newest(folder, "cpu") == folder / "2021-01-01-cpu.json"
    assert readme.newest(folder, "cuda") is None


def test_every_peer_says_its_formats(tmp_path):
    table = readme.peers_table(tmp_path)
    assert all(f"| {name} | - | " in table for name in PEERS)


# Figures


def test_figures_are_drawn_and_know_their_results(folder):
    pytest.importorskip("matplotlib")
    path = folder / "2020-01-01-cpu.json"
    drawn = plot.draw(path)
    assert len(drawn) == len(plot.FIGURES) * 2
    assert all(figure.stat().st_size > 1000 for figure in drawn)
    assert {figure.suffix for figure in drawn} == {".png", ".svg"}
    assert plot.is_current(path)
    svg = [figure.read_bytes() for figure in drawn if figure.suffix == ".svg"]
    plot.draw(path)
    assert [figure.read_bytes() for figure in drawn if figure.suffix == ".svg"] == svg
    path.write_text(path.read_text() + "\n")
    assert not plot.is_current(path)


# Comparisons


def test_a_slowdown_is_flagged_and_noise_is_not(capsys):
    before = [row("flatvars", 10.0), row("torch fused", 10.0), row("flatvars", 10.0, "1x64")]
    after = [row("flatvars", 10.5), row("torch fused", 30.0), row("flatvars", 13.0, "1x64")]
    verdicts = {(c.peer, c.on): c.verdict for c in changes(before, after)}
    assert verdicts == {
        ("flatvars", "adamw 10x100"): "",
        ("flatvars", "adamw 1x64"): "SLOWER",
        ("torch fused", "adamw 10x100"): "SLOWER",
    }
    assert report(before, after) == 1
    assert "1 rows of flatvars slower" in capsys.readouterr().out
    # A peer that became slower fails nobody.
    assert report(before[:2], after[:2]) == 0
    assert report(after, before) == 0


def test_rounds_of_one_run_are_compared_in_pairs():
    """The machine became slow behind the first turn: medians call the same code slower."""
    before = [row("flatvars", 10.0, times=[10.0, 10.0, 10.0, 15.0, 15.0])]
    after = [row("flatvars", 15.0, times=[10.0, 10.0, 15.0, 15.0, 15.0])]
    assert [c.verdict for c in changes(before, after)] == ["SLOWER"]
    (change,) = changes(before, after, in_turn=True)
    assert (change.ratio, change.verdict) == (1.0, "")
    slow = [row("flatvars", 16.0, times=[12.0, 12.0, 12.0, 18.0, 18.0])]
    assert [c.verdict for c in changes(before, slow, in_turn=True)] == ["SLOWER"]


def test_a_wide_spread_allows_more():
    (change,) = changes([row("flatvars", 10.0, spread=0.5)], [row("flatvars", 13.0)])
    assert change.verdict == ""


def test_a_number_that_is_gone_is_flagged(capsys):
    gone = row("flatvars", None, status="red", reason="error")
    assert report([row("flatvars", 1.0)], [gone, row("flatvars", 1.0, "1x64")]) == 1
    assert "1 without a number" in capsys.readouterr().out


def test_nothing_in_common_is_no_success(capsys):
    assert report([row("flatvars", 1.0)], [row("flatvars", 1.0, "1x64")]) == 1
    assert "no row in common" in capsys.readouterr().out


# Commands


@pytest.mark.slow
@pytest.mark.process
def test_the_command_measures_and_writes(tmp_path):
    """From a terminal, with a process for each peer."""
    arguments = ["--device", "cpu", "--case", "step", "--on", "20x30", "--peer", "flatvars"]
    command = [sys.executable, "-m", "bench", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-cpu.json")
    results = Results.load(path)
    assert {r.peer: r.status for r in results.rows} == {"copy": "ok", "flatvars": "ok"}
    assert all(r.wall_ms > 0.0 for r in results.rows)
    assert "--peer flatvars" in results.machine["command"]
    assert "Averages" in done.stdout
    assert main(["compare", str(path), str(path)]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(path), "HEAD"])


@pytest.mark.process
def test_the_benchmark_needs_neither_rich_nor_matplotlib():
    code = (
        "import sys\n"
        "for name in ('rich', 'matplotlib', 'safetensors', 'transformers', 'heavyball'): sys.modules[name] = None\n"
        "import bench.__main__, bench.plot, bench.compare, bench.report.readme\n"
        "print('flatvars' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    # Peers' processes import these files too, and only flatvars' own may import flatvars.
    assert done.stdout == "False\n", done.stderr
