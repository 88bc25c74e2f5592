"""The tables that a run prints."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness.record import Results, Row
from bench.peers import OURS
from bench.report.summary import HELD, LOST_COLUMNS, TARGETS, averages, cell_text, lost_lines, lost_text, quartiles

COLUMNS = (
    "peer",
    "wall ms",
    "spread",
    "host ms",
    "device ms",
    "launches",
    "GB/s",
    "of copy",
    "B/param",
    "peak B",
    "error",
    "note",
)


def number(value: float | None, form: str = "") -> str:
    """Three digits, or as asked."""
    return "-" if value is None else (form or ("{:,.0f}" if value >= 100 else "{:.3g}")).format(value)


def cells_of(row: Row) -> list[str]:
    """A row as text; where there is no number, why."""
    if row.wall_ms is None:
        return [row.peer, f"{row.status}: {row.reason}", *[""] * (len(COLUMNS) - 2)]
    return [
        row.peer,
        number(row.wall_ms, "{:.4g}"),
        number(row.spread, "{:.0%}"),
        number(row.host_ms, "{:.4g}"),
        number(row.device_ms, "{:.4g}"),
        number(row.launches, "{:,}"),
        number(row.gb_per_s),
        number(row.of_copy, "{:.0%}"),
        number(row.bytes_per_param, "{:.1f}"),
        number(row.peak_bytes_per_param, "{:.1f}"),
        number(row.error, "{:.0e}"),
        row.note,
    ]


def heading(row: Row) -> str:
    return f"{row.case} {cell_text(row)}: {row.elements:,} elements in {row.tensors:,} tensors, {row.groups} groups"


def print_cell(rows: Sequence[Row]) -> None:
    """One cell, when it is done; peers that have no such operation are left out."""
    shown = [row for row in rows if row.reason != "has no such operation"]
    if not shown:
        return
    print_table(heading(shown[0]), COLUMNS, [cells_of(row) for row in shown])


def print_summary(results: Results) -> None:
    """The short tables, last: ratios with worst rows, losses, rows without a number, aims; then a line a cell."""
    means = [
        [a.case, a.ours, a.against, f"{a.rows}", f"{a.mean:.2f}x", f"{a.worst:.2f}x", a.worst_on]
        for a in averages(results.rows)
    ]
    print_table(
        "Averages of ratios (above 1 flatvars is faster)",
        ("case", "ours", "against", "rows", "geometric mean", "worst", "on"),
        means,
    )
    lost = lost_lines(results.rows)
    print_table(f"Lost: {lost_text(results.rows)}", LOST_COLUMNS, lost or [["nothing", *[""] * 6]])
    bad = [
        [r.case, cell_text(r), r.peer, f"{r.status}: {r.reason}"] for r in results.rows if r.status in ("red", "failed")
    ]
    if bad:
        print_table("No number", ("case", "on", "peer", "why"), bad)
    if results.machine["device"] != "cpu":
        print_table("Aims", ("aim", "wanted", "measured", ""), aims(results.rows))
    print_table(
        "Ours (bytes are modelled; ratios above 1 are faster, medians of rounds; best of the like peers)",
        ("case", "on", "ours", "x torch fused", "x best", "quartiles", "best peer", "wall ms", "launches", "of copy"),
        [_line(row) for row in results.rows if row.peer in HELD and row.reason != "has no such operation"],
    )
    versions = {row.peer: row.version for row in results.rows if row.version}
    print("peers: " + ", ".join(f"{peer} {version}" for peer, version in versions.items()))


def aims(rows: Sequence[Row]) -> list[list[str]]:
    """The project's aims with what a GPU run measured."""
    lines = []
    for target in TARGETS:
        value = target.measured(rows)
        if value is None:
            lines.append([target.text, target.aim, "not measured yet", ""])
        else:
            lines.append([target.text, target.aim, target.show(value), "yes" if target.reached(value) else "no"])
    return lines


def _line(row: Row) -> list[str]:
    if row.wall_ms is None:
        return [row.case, cell_text(row), row.peer, f"{row.status}: {row.reason}", *[""] * 6]
    return [
        row.case,
        cell_text(row),
        row.peer,
        number(row.fused_ratio, "{:.2f}x"),
        number(row.best_ratio, "{:.2f}x"),
        quartiles(row.best_low, row.best_high),
        row.best_peer,
        number(row.wall_ms, "{:.4g}"),
        number(row.launches, "{:,}"),
        number(row.of_copy, "{:.0%}"),
    ]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout."""
    # Peers' processes import this file as well, and only flatvars' own may import flatvars.
    from flatvars.cli.show import table

    print(f"\n{title}")
    table(columns, rows, ["bold" if row[0] in OURS else None for row in rows])
