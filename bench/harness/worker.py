"""The process of one peer: sets a cell up behind its gate, runs rounds when it is told to, and tells facts."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from bench.cases.cell import CannotRunError, Cell, Checked, Contender
from bench.harness import work
from bench.harness.timing import Round, measure_round, synchronize
from bench.peers import load
from bench.peers.peer import Peer

# After the gate, which has run the contender three times; one run will do where it is slow.
WARM_UP = 3
SLOW_MS = 50.0


@dataclass(frozen=True)
class Ready:
    """A cell that was set up and whose gate is green or red; few runs were timed yet, to plan the others.

    Attributes:
        run_ms: What a run takes, with the pause before it.
        storage, views: What rows that are compared have in common.
        state_bytes: Of one parameter's whole state, where it is not as the cell asks.
    """

    checked: Checked
    run_ms: float
    storage: str
    views: bool
    state_bytes: float | None


@dataclass(frozen=True)
class Facts:
    """What is counted and not timed."""

    launches: int
    held_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Refused:
    """Why there is no number: `status` is "skipped" or "failed"."""

    status: str
    reason: str


class Bench:
    """One peer's cells, one at a time."""

    def __init__(self, peer: Peer, device: str) -> None:
        self.peer = peer
        self.device = device
        self.contender: Contender | None = None
        self.before: int | None = None

    def set_up(self, cell: Cell) -> Ready | Refused:
        """Builds the contender and passes the gate; a red one is not warmed up, and not timed."""
        reason = self.peer.why_not(cell, self.device)
        if reason is not None:
            return Refused("skipped", reason)
        self.drop()
        # What is alive now stays: modules. Every later collection would look at half a million of their objects.
        gc.freeze()
        self.before = work.bytes_in_use(self.device)
        try:
            self.contender = self.peer.cases[cell.case](cell, self.device)
            checked = self.contender.check()
        except CannotRunError as error:
            self.drop()
            return Refused("skipped", str(error))
        run_ms = self._warm_up() if checked.green else 0.0
        storage = self.peer.storage(cell)
        views = self.peer.views and cell.is_stepping
        return Ready(checked, run_ms, storage.text, views, storage.state_bytes)

    def _warm_up(self) -> float:
        """Milliseconds of the fastest run."""
        times: list[float] = []
        while len(times) < WARM_UP and min(times, default=0.0) < SLOW_MS:
            times.append(self.round(1).wall)
        assert self.contender is not None
        return min(times) + self.contender.pause * 1e3

    def round(self, runs: int) -> Round:
        assert self.contender is not None
        made = self.contender
        return measure_round(made.prepare, made.run, runs, self.device, made.pause)

    def facts(self) -> Facts:
        """Memory first: the profiler takes some of its own."""
        assert self.contender is not None
        self.contender.prepare()
        gc.collect()
        held = work.bytes_in_use(self.device)
        work.reset_peak(self.device)
        self.contender.run()
        synchronize(self.device)
        peak = work.peak_bytes(self.device)
        launches = work.count_launches(self.contender.prepare, self.contender.run, self.device)
        return Facts(launches, self._own(held), self._own(peak))

    def _own(self, measured: int | None) -> int | None:
        if measured is None or self.before is None or self.contender is None:
            return None
        return max(0, measured - self.before - self.contender.scaffold_bytes)

    def drop(self) -> None:
        """Frees what the cell took."""
        if self.contender is not None:
            self.contender.close()
        self.contender = None
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()


def serve(where: str, device: str, connection: Connection, log: str, source: str | None) -> None:
    """Answers (method, arguments) until None comes; what goes wrong is an answer too.

    Args:
        where: The peer, as `module:attribute`.
        log: File for whatever the peer prints.
        source: Checkout whose flatvars is measured, if not this one.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    warnings.simplefilter("ignore")
    if source is not None:
        sys.path.insert(0, source)
    bench = Bench(load(where), device)
    connection.send(bench.peer.version())
    while (request := connection.recv()) is not None:
        method, arguments = request
        try:
            connection.send(getattr(bench, method)(*arguments))
        except Exception as error:
            connection.send(Refused("failed", _one_line(error)))
            bench.drop()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
