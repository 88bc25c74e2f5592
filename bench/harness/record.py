"""Rows and files of results: JSON with the machine, and the same rows as CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.harness.pairs import ratio

FORMAT = 2


@dataclass
class Row:
    """One peer on one cell. Times in milliseconds, bytes modelled; None where there is no number: `reason` says why.

    Attributes:
        like: Formats of values and state; only rows alike in it are compared.
        views: Whether gradients are views of one buffer, into which autograd adds; again like is compared with like.
        status: "ok", "skipped", "failed" or "red" (the gate).
        spread: Distance of the quartiles of `wall_ms` over it.
        of_copy: Share of the copy's bandwidth in the same rounds of the same run.
        best_ratio, fused_ratio: Of flatvars: how much slower the fastest like peer is, and torch's fused, by rounds.
        best_low, best_high, fused_low, fused_high: The quartiles of these; None where they share no two rounds.
        times: `wall_ms` of each round, None where there was no turn; in the JSON alone.
    """

    case: str
    optimizer: str
    on: str
    format: str
    elements: int
    tensors: int
    groups: int
    peer: str
    version: str = ""
    like: str = ""
    views: bool = False
    status: str = "ok"
    reason: str = ""
    wall_ms: float | None = None
    spread: float | None = None
    host_ms: float | None = None
    device_ms: float | None = None
    rounds: int = 0
    launches: int | None = None
    bytes: float | None = None
    gb_per_s: float | None = None
    floor_ms: float | None = None
    of_copy: float | None = None
    bytes_per_param: float | None = None
    peak_bytes_per_param: float | None = None
    error: float | None = None
    norm_error: float | None = None
    note: str = ""
    best_ratio: float | None = None
    best_low: float | None = None
    best_high: float | None = None
    best_peer: str = ""
    fused_ratio: float | None = None
    fused_low: float | None = None
    fused_high: float | None = None
    times: list[float | None] = field(default_factory=list)

    @property
    def cell(self) -> tuple[str, str, str, str]:
        return self.case, self.optimizer, self.on, self.format


@dataclass
class Results:
    """A run: what it was made with, and its rows.

    Attributes:
        machine: Facts as text, see `machine.py`.
        host: Microseconds of the parts of a step that walk the variables, by number of variables.
    """

    machine: dict[str, str]
    rows: list[Row]
    host: list[dict[str, float]] = field(default_factory=list)

    def save(self, folder: Path, name: str) -> Path:
        """Writes `name`.json and `name`.csv; numbers to five digits, which is more than they are worth."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        rows = [{key: _short(value) for key, value in asdict(row).items()} for row in self.rows]
        host = [{key: _short(value) for key, value in line.items()} for line in self.host]
        text = ",\n  ".join(json.dumps(row) for row in rows)
        head = json.dumps({"format": FORMAT, "machine": self.machine, "host": host}, indent=1)
        path.write_text(f'{head[:-2]},\n "rows": [\n  {text}\n ]\n}}\n')
        with (folder / f"{name}.csv").open("w", newline="") as file:
            columns = [f.name for f in fields(Row) if f.name != "times"]
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads a JSON file.

        Raises:
            ValueError: a file of another format.
        """
        read = json.loads(path.read_text())
        if read.get("format") != FORMAT:
            raise ValueError(f"{path} is of format {read.get('format')}, and this reads {FORMAT}; make it again")
        return cls(read["machine"], [Row(**row) for row in read["rows"]], read["host"])


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    if not isinstance(value, float):
        return value
    # JSON has no NaN; the reason of a red gate has the text.
    return float(f"{value:.5g}") if math.isfinite(value) else None


def compare_peers(rows: Iterable[Row], ours: tuple[str, ...]) -> None:
    """Fills in the ratios of our rows, against the like peers in the same cell.

    The best peer is the one with the lowest ratio. Gradients that autograd leaves where it likes are compared with
    such, and views of one buffer with views; torch's fused, which has no views, with either.
    """
    cells: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    for group in cells.values():
        for mine in group:
            if mine.peer not in ours:
                continue
            others = [r for r in group if r.peer not in ours and r.peer != "copy" and r.like == mine.like]
            found = [(one, r) for r in others if (one := ratio(mine.times, r.times)) is not None]
            like = [(one, r) for one, r in found if r.views == mine.views]
            if like:
                best, row = min(like, key=lambda pair: pair[0].middle)
                mine.best_peer = row.peer
                mine.best_ratio, mine.best_low, mine.best_high = astuple(best)
            for fused in (one for one, r in found if r.peer == "torch fused"):
                mine.fused_ratio, mine.fused_low, mine.fused_high = astuple(fused)
