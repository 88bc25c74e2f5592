"""The benchmark's harness: no number on a red gate, and whatever happens to a peer is a row."""

from __future__ import annotations

import time

import pytest

from bench.cases.cell import Cell, Checked
from bench.harness import timing
from bench.harness.isolate import PeerProcess
from bench.harness.record import Row
from bench.harness.timing import measure_round
from bench.harness.worker import Bench
from bench.run import Limits, Runner
from tests.support import broken_peers

CELL = Cell("tail", "3x50", "adamw")
FEW = Limits(rounds=3, set_up_seconds=60.0, peer_seconds=5.0, total_seconds=300.0)


class InProcess:
    """A peer that is asked without a process: for what happens to it in any case."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name.lower(), ""
        self.bench = Bench(getattr(broken_peers, name), "cpu")

    def why_not(self, cell: Cell) -> None:
        """As for a peer that only its own process knows."""

    def start(self) -> None:
        """There is nothing to start."""

    def ask(self, method: str, *arguments: object, seconds: float) -> object:
        return getattr(self.bench, method)(*arguments)


def run_peers(names: list[str], limits: Limits = FEW, cells: tuple[Cell, ...] = (CELL,)) -> list[Row]:
    processes = [PeerProcess(name.lower(), f"tests.support.broken_peers:{name}", "cpu") for name in names]
    try:
        return Runner(processes, "cpu", limits).run(cells, lambda done, cell, rows: None)
    finally:
        for process in processes:
            process.close()


def run_here(name: str) -> Row:
    (row,) = Runner([InProcess(name)], "cpu", FEW).run((CELL,), lambda done, cell, rows: None)
    return row


@pytest.mark.filterwarnings("default")  # of the profiler, whose remarks depend on torch's version
def test_a_right_peer_has_all_its_numbers():
    row = run_here("RIGHT")
    assert row.status == "ok"
    assert row.wall_ms > 0.0
    assert row.rounds == len(row.times) == 3
    assert row.wall_ms == sorted(row.times)[1]
    assert row.launches > 0
    assert row.error < 1e-3
    assert row.bytes == 32 * 150


@pytest.mark.parametrize("peer", ["WRONG", "LAZY", "NAN"])
def test_no_number_on_a_red_gate(peer):
    row = run_here(peer)
    assert row.status == "red"
    assert row.wall_ms is None
    assert row.rounds == 0
    assert row.gb_per_s is None
    assert row.reason.startswith("error")


@pytest.mark.parametrize(
    ("peer", "reason"), [("REFUSING", "not for this cell"), ("MISSING", "not installed: pip install no-such-package")]
)
def test_a_peer_that_cannot_is_skipped_with_the_reason(peer, reason):
    row = run_here(peer)
    assert (row.status, row.reason, row.wall_ms) == ("skipped", reason, None)


def test_no_process_is_started_for_what_a_description_refuses():
    process = PeerProcess("missing", "tests.support.broken_peers:MISSING", "cpu")
    (row,) = Runner([process], "cpu", FEW).run((CELL,), lambda done, cell, rows: None)
    assert (row.status, row.reason) == ("skipped", "not installed: pip install no-such-package")
    assert process._process is None
    process.close()


@pytest.mark.process
def test_what_goes_wrong_in_a_process_is_a_row_and_the_others_go_on():
    # Two cells: a peer that died is started again for the second.
    rows = run_peers(["RIGHT", "CRASHING", "CRASHING_LATER", "RAISING"], cells=(CELL, Cell("step", "3x50", "adamw")))
    assert [row.case for row in rows] == ["tail"] * 4 + ["step"] * 4
    for right, crashing, later, raising in (rows[:4], rows[4:]):
        assert right.status == "ok"
        assert right.rounds == 3
        assert crashing.reason == "its process ended in set_up (SIGSEGV): about to go"
        assert later.reason == "its process ended in round (exit status 3): it printed nothing"
        assert raising.reason == "RuntimeError: no kernel image is available"
        for broken in (crashing, later, raising):
            assert broken.status == "failed"
            assert broken.wall_ms is None


@pytest.mark.process
def test_a_peer_that_hangs_is_stopped():
    limits = Limits(rounds=3, set_up_seconds=1.0, peer_seconds=5.0, total_seconds=300.0)
    (row,) = run_peers(["HANGING"], limits)
    assert (row.status, row.reason) == ("failed", "set_up took more than 1 s")


def test_cells_after_the_time_is_up_say_so():
    limits = Limits(rounds=3, set_up_seconds=60.0, peer_seconds=5.0, total_seconds=-1.0)
    (row,) = Runner([InProcess("RIGHT")], "cpu", limits).run((CELL,), lambda done, cell, rows: None)
    assert row.status == "skipped"
    assert row.reason.startswith("not begun")


def test_a_pause_is_before_a_run_and_not_timed():
    cell = Cell("cold", "3x50", "adamw")
    contender = broken_peers.RIGHT.cases["cold"](cell, "cpu")
    seen: list[float] = []
    timed = measure_round(lambda: seen.append(time.perf_counter()), contender.run, 2, "cpu", contender.pause)
    assert contender.pause >= 0.02
    assert seen[1] - seen[0] >= contender.pause
    assert timed.wall < (time.perf_counter() - seen[0]) * 1e3 - 2 * contender.pause * 1e3
    assert broken_peers.RIGHT.cases["step"](CELL, "cpu").pause == 0.0


def test_threads_are_awake_before_each_run_but_behind_a_pause(monkeypatch):
    order: list[str] = []
    monkeypatch.setattr(timing, "wake", lambda ms=0.0: order.append(f"wake {ms:.0f}"))
    steps = (lambda: order.append("prepare"), lambda: order.append("run"))
    measure_round(*steps, 2, "cpu")
    assert order == ["wake 2", "prepare", "wake 0", "run", "prepare", "wake 0", "run"]
    order.clear()
    measure_round(*steps, 1, "cpu", 1e-6)
    assert order == ["prepare", "run"]


def test_nan_is_within_no_limit():
    assert not Checked(float("nan"), 1.0).green
    assert not Checked(0.0, 1.0, norm_error=float("nan"), norm_limit=1.0).green
    assert Checked(0.0, 0.0).green
