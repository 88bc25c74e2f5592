"""The benchmark's harness: no number on a red gate, and whatever happens to a peer is a row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.cases.cell import Cell, Checked
from bench.harness.isolate import PeerProcess
from bench.harness.record import Row
from bench.run import Limits, Runner

CELL = Cell("tail", "3x50", "adamw")
FEW = Limits(rounds=3, set_up_seconds=60.0, peer_seconds=5.0, total_seconds=300.0)


def run_peers(names: list[str], limits: Limits = FEW, cells: tuple[Cell, ...] = (CELL,)) -> list[Row]:
    processes = [PeerProcess(name.lower(), f"tests.support.broken_peers:{name}", "cpu") for name in names]
    try:
        return Runner(processes, "cpu", limits).run(cells, lambda done, cell, rows: None)
    finally:
        for process in processes:
            process.close()


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, Row]]:
    names = ["RIGHT", "WRONG", "LAZY", "NAN", "CRASHING", "CRASHING_LATER", "RAISING", "REFUSING", "MISSING"]
    # The second cell shows that a peer which died is started again.
    yield {row.peer: row for row in run_peers(names)}


def test_a_right_peer_has_all_its_numbers(rows):
    row = rows["right"]
    assert row.status == "ok"
    assert row.wall_ms > 0.0
    assert row.rounds == 3
    assert row.launches > 0
    assert row.error < 1e-3
    assert row.bytes == 32 * 150


@pytest.mark.parametrize("peer", ["wrong", "lazy", "nan"])
def test_no_number_on_a_red_gate(rows, peer):
    row = rows[peer]
    assert row.status == "red"
    assert row.wall_ms is None
    assert row.rounds == 0
    assert row.gb_per_s is None
    assert row.reason.startswith("error")


@pytest.mark.parametrize(
    ("peer", "status", "reason"),
    [
        ("crashing", "failed", "its process ended in set_up (SIGSEGV): about to go"),
        ("crashing_later", "failed", "its process ended in round (exit status 3): it printed nothing"),
        ("raising", "failed", "RuntimeError: no kernel image is available"),
        ("refusing", "skipped", "not for this cell"),
        ("missing", "skipped", "not installed: pip install no-such-package"),
    ],
)
def test_what_goes_wrong_is_a_row_with_the_reason(rows, peer, status, reason):
    row = rows[peer]
    assert (row.status, row.reason) == (status, reason)
    assert row.wall_ms is None


def test_a_peer_that_hangs_is_stopped():
    limits = Limits(rounds=3, set_up_seconds=1.0, peer_seconds=5.0, total_seconds=300.0)
    (row,) = run_peers(["HANGING"], limits)
    assert (row.status, row.reason) == ("failed", "set_up took more than 1 s")


def test_a_peer_that_died_is_started_again_for_the_next_cell():
    first, second = run_peers(["CRASHING"], cells=(CELL, Cell("step", "3x50", "adamw")))
    assert "SIGSEGV" in first.reason
    assert "SIGSEGV" in second.reason
    assert second.case == "step"


def test_cells_after_the_time_is_up_say_so():
    limits = Limits(rounds=3, set_up_seconds=60.0, peer_seconds=5.0, total_seconds=-1.0)
    (row,) = run_peers(["RIGHT"], limits)
    assert row.status == "skipped"
    assert row.reason.startswith("not begun")


def test_nan_is_within_no_limit():
    assert not Checked(float("nan"), 1.0).green
    assert not Checked(0.0, 1.0, norm_error=float("nan"), norm_limit=1.0).green
    assert Checked(0.0, 0.0).green
