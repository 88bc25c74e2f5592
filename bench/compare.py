"""`python -m bench compare A B`: what became slower, between two result files or two commits.

Files are compared row by row. Commits are measured against each other now: both are checked out beside this tree, and
this benchmark runs flatvars of each in a process of its own, in turn, on the cells of --quick or those asked for.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.cases.cell import Cell
from bench.harness.isolate import PeerProcess
from bench.harness.machine import ROOT
from bench.harness.pairs import ratio
from bench.harness.record import Results, Row
from bench.peers import PEERS
from bench.plan import cells
from bench.report.summary import cell_text
from bench.report.table import number, print_table
from bench.run import Runner, limits

# What two runs of the same code on a quiet machine differ by.
NOISE = 0.05


@dataclass(frozen=True)
class Change:
    """One peer on one cell, before and after.

    Attributes:
        ratio: Time after over time before: of medians, or the median over the rounds of one run.
        allowed: What it may be before it counts: noise, and the spreads of both medians, or of the ratio.
    """

    case: str
    on: str
    peer: str
    before_ms: float
    after_ms: float
    ratio: float
    allowed: float

    @property
    def verdict(self) -> str:
        if self.ratio > self.allowed:
            return "SLOWER"
        return "faster" if self.ratio < 1.0 / self.allowed else ""


def changes(
    before: Sequence[Row], after: Sequence[Row], noise: float = NOISE, *, in_turn: bool = False
) -> list[Change]:
    """Rows that both have, the worst first.

    Args:
        in_turn: Both are of one run, so that a round of one belongs to a round of the other.
    """
    old = {(row.cell, row.peer): row for row in before}
    found = []
    for new in after:
        was = old.get((new.cell, new.peer))
        if was is None or was.wall_ms is None or new.wall_ms is None:
            continue
        times, spread = new.wall_ms / was.wall_ms, (was.spread or 0.0) + (new.spread or 0.0)
        if in_turn and (paired := ratio(was.times, new.times)) is not None and paired.low and paired.high:
            times, spread = paired.middle, (paired.high - paired.low) / paired.middle
        found.append(Change(new.case, cell_text(new), new.peer, was.wall_ms, new.wall_ms, times, 1.0 + noise + spread))
    return sorted(found, key=lambda change: change.ratio / change.allowed, reverse=True)


def lost_numbers(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """Rows that had a number and have none any more: a red gate or a crash is worse than slow."""
    timed = {(row.cell, row.peer) for row in before if row.wall_ms is not None}
    return [row for row in after if row.status in ("red", "failed") and (row.cell, row.peer) in timed]


def measure_commits(revisions: Sequence[str], todo: Sequence[Cell], device: str) -> list[list[Row]]:
    """The rows of flatvars at two commits, measured in turn."""
    with tempfile.TemporaryDirectory(prefix="flatvars-compare-") as folder:
        processes = [PeerProcess("copy", PEERS["copy"], device)]
        for i, revision in enumerate(revisions):
            processes.append(
                PeerProcess(f"flatvars {i}", PEERS["flatvars"], device, _tree(revision, Path(folder, str(i))))
            )
        try:
            rows = Runner(processes, device, limits(device, True)).run(
                todo, lambda done, cell, _: print(f"  {cell.text}")
            )
        finally:
            for process in processes:
                process.close()
    found: list[list[Row]] = [[], []]
    for row in rows:
        if row.peer != "copy":
            found[int(row.peer.removeprefix("flatvars "))].append(row)
            row.peer = "flatvars"
    return found


def _tree(revision: str, folder: Path) -> str:
    """Files of a commit.

    Raises:
        SystemExit: git does not know it.
    """
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(f"{revision!r} is neither a file nor a commit: {archive.stderr.decode().strip()}")
    folder.mkdir()
    # The benchmark is this one's: only what is measured comes from there.
    subprocess.run(["tar", "x", "-C", str(folder), "flatvars", "kernels"], input=archive.stdout, check=True)
    return str(folder)


def report(before: Sequence[Row], after: Sequence[Row], noise: float = NOISE, *, in_turn: bool = False) -> int:
    """Prints the comparison.

    Returns:
        1 if a row of flatvars is slower or lost its number, else 0; a peer's own changes fail nobody.
    """
    found, gone = changes(before, after, noise, in_turn=in_turn), lost_numbers(before, after)
    lines = [
        [c.case, c.on, c.peer, number(c.before_ms), number(c.after_ms), f"{c.ratio:.2f}", f"{c.allowed:.2f}", c.verdict]
        for c in found
    ]
    lines += [[row.case, cell_text(row), row.peer, "", row.status, "", "", "NO NUMBER"] for row in gone]
    columns = ("case", "on", "peer", "A ms", "B ms", "B / A", "allowed", "")
    print_table("B against A", columns, lines or [["no row in common", *[""] * 7]])
    ours = [c for c in found if c.verdict == "SLOWER" and c.peer.startswith("flatvars")]
    ours_gone = [row for row in gone if row.peer.startswith("flatvars")]
    print(f"{len(ours)} rows of flatvars slower, {len(ours_gone)} without a number any more")
    return int(bool(ours or ours_gone or not found))


def command(arguments: Sequence[str]) -> int:
    """`python -m bench compare`."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description=__doc__)
    parser.add_argument("a", help="result file (JSON) or commit: before")
    parser.add_argument("b", help="result file (JSON) or commit: after")
    parser.add_argument("--noise", type=float, default=NOISE, help="share that may change (default %(default)s)")
    parser.add_argument("--case", action="append", help="of commits: which cases, repeatable")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    paths = [Path(options.a), Path(options.b)]
    files = [path.is_file() for path in paths]
    if all(files):
        before, after = (Results.load(path).rows for path in paths)
    elif any(files):
        parser.error("give two result files or two commits, not one of each")
    else:
        todo = [cell for cell in cells(options.device, True) if not options.case or cell.case in options.case]
        before, after = measure_commits([options.a, options.b], todo, options.device)
    return report(before, after, options.noise, in_turn=not any(files))
