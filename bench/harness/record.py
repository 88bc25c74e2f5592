"""Rows and files of results: JSON with the machine, and the same rows as CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 2


@dataclass
class Row:
    """One peer on one cell. Times in milliseconds, bytes modelled; None where there is no number: `reason` says why.

    Attributes:
        like: Formats of values and state; only rows alike in it are compared.
        status: "ok", "skipped", "failed" or "red" (the gate).
        spread: Distance of the quartiles of `wall_ms` over it.
        of_copy: Share of the copy's bandwidth in the same rounds of the same run.
        best_ratio, fused_ratio: Of flatvars: how much slower the fastest peer of like formats is, and torch's fused.
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
    best_peer: str = ""
    fused_ratio: float | None = None

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
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
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
    if not isinstance(value, float):
        return value
    # JSON has no NaN; the reason of a red gate has the text.
    return float(f"{value:.5g}") if math.isfinite(value) else None


def compare_peers(rows: Iterable[Row], ours: tuple[str, ...]) -> None:
    """Fills in the ratios of our rows, against the peers of like formats in the same cell."""
    cells: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, []).append(row)
    for group in cells.values():
        for mine in group:
            if mine.peer not in ours or mine.wall_ms is None:
                continue
            others = [r for r in group if r.peer not in ours and r.peer != "copy" and r.like == mine.like]
            timed = {r.peer: r.wall_ms for r in others if r.wall_ms is not None}
            if timed:
                mine.best_peer = min(timed, key=lambda peer: timed[peer])
                mine.best_ratio = timed[mine.best_peer] / mine.wall_ms
            if "torch fused" in timed:
                mine.fused_ratio = timed["torch fused"] / mine.wall_ms
