"""A run: each cell by every peer in its process, gates first, then rounds in turn; a row for each, number or not."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.cases.cell import Cell
from bench.harness.isolate import PeerProcess
from bench.harness.record import Row, compare_peers
from bench.harness.timing import Round, middle
from bench.harness.worker import Facts, Ready, Refused
from bench.peers import OURS

# A round is as many runs as fit in here, so that a clock's step is nothing beside it.
ROUND_MS = 10.0
MOST_RUNS = 20
# A CPU's threads spin for some milliseconds behind their last work, in the way of the next peer's.
REST_SECONDS = 0.015
# Bytes that one peer's values, gradients, state and the gate's copies take for a parameter, roughly; frozen ones less.
BYTES_PER_PARAM = 32
BYTES_PER_FROZEN = 8
SEEN_FROM = 2**22


@dataclass(frozen=True)
class Limits:
    """How long a run may take.

    Attributes:
        rounds: Timed rounds of each peer, at least 3 of them if it is slow.
        set_up_seconds: For building, compiling and the gate.
        peer_seconds: For one peer's rounds on one cell.
        total_seconds: Cells that have not begun by then become rows that say so.
    """

    rounds: int
    set_up_seconds: float
    peer_seconds: float
    total_seconds: float


FULL = Limits(rounds=11, set_up_seconds=120.0, peer_seconds=4.0, total_seconds=5400.0)
FULL_CPU = Limits(rounds=17, set_up_seconds=50.0, peer_seconds=2.0, total_seconds=1200.0)
QUICK = Limits(rounds=7, set_up_seconds=45.0, peer_seconds=1.5, total_seconds=440.0)
QUICK_CPU = Limits(rounds=7, set_up_seconds=40.0, peer_seconds=0.4, total_seconds=270.0)
GATE_SLACK_SECONDS = 60.0
# Set-ups that may be stopped before a peer is not asked again: each costs a restart as well.
PATIENCE = 2
# What the cell that was begun last may take beyond the total.
GRACE_SECONDS = 30.0


def limits(device: str, quick: bool) -> Limits:
    if device == "cpu":
        return QUICK_CPU if quick else FULL_CPU
    return QUICK if quick else FULL


@dataclass
class _Turn:
    """One peer's share of a cell; its rounds by their number in the cell."""

    process: PeerProcess
    row: Row
    ready: Ready | None = None
    rounds: dict[int, Round] = field(default_factory=dict)
    spent: float = 0.0
    facts: Facts | None = None


class Runner:
    """Runs cells.

    Args:
        processes: The peers, in the order of the table.
        say: Hears of every cell that is done.
    """

    def __init__(self, processes: Sequence[PeerProcess], device: str, limits: Limits) -> None:
        self.processes = processes
        self.device = device
        self.limits = limits
        self.end = 0.0
        self.too_slow: Counter[str] = Counter()  # set-ups of each peer that were stopped
        # What is not timed may share a CPU's cores: building, compiling and gates are one thread's work, mostly.
        self.at_once = (os.cpu_count() or 1) if device == "cpu" else 1

    def run(self, cells: Sequence[Cell], after: Callable[[int, Cell, list[Row]], None]) -> list[Row]:
        """All rows, cell by cell; `after` hears how many cells are done and the rows of the last."""
        rows: list[Row] = []
        end = time.monotonic() + self.limits.total_seconds
        self.end = end + GRACE_SECONDS
        for process in self.processes:
            if any(process.why_not(cell) is None for cell in cells):
                process.start()
        for i, cell in enumerate(cells):
            if time.monotonic() > end:
                reason = f"not begun within {self.limits.total_seconds:.0f} s"
                done = [_row(cell, process, Refused("skipped", reason)) for process in self.processes]
            else:
                done = self._cell(cell)
            rows += done
            after(i + 1, cell, done)
        compare_peers(rows, OURS)
        return rows

    def _cell(self, cell: Cell) -> list[Row]:
        turns = [_Turn(process, _row(cell, process)) for process in self.processes]
        copies = [turn for turn in turns if turn.process.name == "copy"]
        others = [turn for turn in turns if turn.process.name != "copy"]
        for i, batch in enumerate(_batches(others, self._fitting(cell)) or [[]]):
            # The copy stays, and takes part in the rounds of every batch.
            self._rounds(cell, [*copies, *batch], i * self.limits.rounds)
        self._each(self._finish, copies)
        copy_speed = next((_speed(cell, turn) for turn in copies if turn.rounds), None)
        for turn in turns:
            _fill(cell, turn, copy_speed)
        return [turn.row for turn in turns]

    def _each(self, do: Callable[[_Turn], object], turns: list[_Turn]) -> None:
        """What is not timed, for some peers at once."""
        with ThreadPoolExecutor(self.at_once) as pool:
            list(pool.map(do, turns))

    def _fitting(self, cell: Cell) -> int:
        """How many peers fit into memory together."""
        frozen = cell.workload.total - cell.workload.numel
        need = max(1, cell.workload.numel * BYTES_PER_PARAM + frozen * BYTES_PER_FROZEN)
        return max(1, int(0.6 * free_bytes(self.device) / need))

    def _set_up(self, cell: Cell, turn: _Turn) -> None:
        if turn.ready is not None or turn.row.status != "ok":
            return
        seconds = min(self.limits.set_up_seconds, max(1.0, self.end - time.monotonic()))
        name, reason = turn.process.name, turn.process.why_not(cell)
        if reason is not None:
            answer: Any = Refused("skipped", reason)
        elif self.too_slow[name] >= PATIENCE:
            reason = f"not asked again after {PATIENCE} set-ups of more than {self.limits.set_up_seconds:.0f} s"
            answer = Refused("skipped", reason)
        else:
            answer = turn.process.ask("set_up", cell, seconds=seconds)
        turn.row.version = turn.process.version or turn.row.version
        if isinstance(answer, Refused):
            self.too_slow[name] += "took more than" in answer.reason
            turn.row.status, turn.row.reason = answer.status, answer.reason
            return
        checked = answer.checked
        turn.row.like, turn.row.views = answer.storage, answer.views
        turn.row.error, turn.row.norm_error, turn.row.note = checked.error, checked.norm_error, checked.note
        if not checked.green:
            turn.row.status, turn.row.reason = "red", checked.text
            turn.process.ask("drop", seconds=GATE_SLACK_SECONDS)
        else:
            turn.ready = answer

    def _rounds(self, cell: Cell, turns: list[_Turn], number: int) -> None:
        """Sets a batch up and times it; its first round has this number."""
        # Variants of ours last: flatvars has compiled for them by then.
        self._each(lambda turn: self._set_up(cell, turn), sorted(turns, key=lambda t: t.process.name in OURS[1:]))
        ready = [turn for turn in turns if turn.ready is not None]
        for i in range(self.limits.rounds):
            # Whoever goes first finds other caches and clocks: they take turns at it.
            first = i % max(1, len(ready))
            for turn in ready[first:] + ready[:first]:
                self._one_round(turn, number + i)
        self._each(self._finish, [turn for turn in ready if turn.process.name != "copy"])

    def _one_round(self, turn: _Turn, number: int) -> None:
        late = turn.spent > self.limits.peer_seconds and len(turn.rounds) >= 3
        if turn.ready is None or late:
            return
        runs = max(1, min(MOST_RUNS, int(ROUND_MS / max(turn.ready.run_ms, 1e-3))))
        if self.device == "cpu":
            time.sleep(REST_SECONDS)
        start = time.monotonic()
        seconds = GATE_SLACK_SECONDS + self.limits.set_up_seconds
        answer = turn.process.ask("round", runs, seconds=seconds)
        turn.spent += time.monotonic() - start
        if isinstance(answer, Refused):
            turn.row.status, turn.row.reason, turn.ready = answer.status, answer.reason, None
            turn.rounds = {}
        else:
            turn.rounds[number] = answer

    def _finish(self, turn: _Turn) -> None:
        if turn.ready is None:
            return
        facts = turn.process.ask("facts", seconds=GATE_SLACK_SECONDS)
        turn.facts = facts if isinstance(facts, Facts) else None
        turn.process.ask("drop", seconds=GATE_SLACK_SECONDS)


def free_bytes(device: str) -> int:
    """Memory that tensors may take now."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _batches(turns: list[_Turn], size: int) -> list[list[_Turn]]:
    return [turns[i : i + size] for i in range(0, len(turns), size)]


def _row(cell: Cell, process: PeerProcess, refused: Refused | None = None) -> Row:
    workload = cell.workload
    row = Row(
        cell.case,
        cell.optimizer,
        cell.on,
        cell.format,
        workload.numel,
        len(workload.trained),
        workload.groups,
        process.name,
        process.version,
    )
    if refused is not None:
        row.status, row.reason = refused.status, refused.reason
    return row


def _modelled(cell: Cell, turn: _Turn) -> float | None:
    if turn.ready is None:
        return None
    if turn.process.name == "copy":
        cell = Cell("init" if cell.case == "init" else "copy", cell.on, "", cell.format)
    each = cell.bytes_per_param(turn.ready.state_bytes)
    # Adoption and first values are of all parameters, frozen ones included.
    numel = cell.workload.total if cell.case in ("init", "adopt") else cell.workload.numel
    return None if each is None else each * numel


def _speed(cell: Cell, turn: _Turn) -> float | None:
    """Gigabytes a second of the device's own time."""
    modelled = _modelled(cell, turn)
    device = middle([r.device for r in turn.rounds.values()])[0]
    return None if modelled is None else modelled / device / 1e6


def _fill(cell: Cell, turn: _Turn, copy_speed: float | None) -> None:
    row = turn.row
    if not turn.rounds:
        return
    rounds = list(turn.rounds.values())
    row.wall_ms, row.spread = middle([r.wall for r in rounds])
    row.host_ms = middle([r.host for r in rounds])[0]
    row.device_ms = middle([r.device for r in rounds])[0]
    row.times = [getattr(turn.rounds.get(i), "wall", None) for i in range(max(turn.rounds) + 1)]
    row.rounds = len(turn.rounds)
    row.bytes, row.gb_per_s = _modelled(cell, turn), _speed(cell, turn)
    if copy_speed and row.bytes is not None and row.gb_per_s is not None:
        row.floor_ms, row.of_copy = row.bytes / copy_speed / 1e6, row.gb_per_s / copy_speed
    if turn.facts is not None:
        row.launches = turn.facts.launches
        # Below this, pages and allocator blocks are all that is seen.
        if row.elements >= SEEN_FROM and turn.facts.held_bytes is not None and turn.facts.peak_bytes is not None:
            row.bytes_per_param = turn.facts.held_bytes / row.elements
            row.peak_bytes_per_param = turn.facts.peak_bytes / row.elements
