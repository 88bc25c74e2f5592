"""`python -m bench readme`: what bench/README.md and the README show of the newest committed results.

What stands between `<!-- generated: NAME -->` and `<!-- end -->` is made here; the rest is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from bench.harness.record import Results, Row
from bench.peers import OURS, PEERS, load
from bench.plan import CASES
from bench.plot import FIGURES, draw, figure_path
from bench.report.formats import formats_part
from bench.report.headline import headline
from bench.report.summary import HELD, LOST_COLUMNS, averages, cell_text, lost_lines, lost_text, quartiles
from bench.report.table import aims, number
from bench.report.trained import trained_part

BENCH = Path(__file__).parents[1]
PAGES = (BENCH / "README.md", BENCH.parent / "README.md")
FOLDER = BENCH / "results"
NAMES = {"cpu": "a CPU", "cuda": "a GPU"}
NOT_YET = "Not measured yet. The command is `python -m bench --out bench/results`, then `python -m bench readme`."
IN_FULL = ("tail", "cold")
"""The cases whose rows the page shows; those of the others are in the CSV."""

CHECKPOINT_COLUMNS = {
    "save": "save",
    "torch_save_and_sync": "torch.save and fsync",
    "torch_save": "torch.save",
    "disk": "disk",
    "copy": "copy",
    "snapshot": "snapshot",
    "snapshot_save_call": "saving call",
    "step": "step",
    "step_while_saving": "step while saving",
}
ALT = {
    "bandwidth": "bandwidth of the tail against size",
    "tensors": "time of the tail against the number of tensors",
    "memory": "bytes a parameter, by peer",
}


def newest(folder: Path, device: str) -> Path | None:
    """The newest full results of a device; names begin with their date."""
    return max(folder.glob(f"*-{device}.json"), default=None)


def page(text: str, folder: Path = FOLDER) -> str:
    """The text with every generated part made anew."""
    parts = {"peers": peers_table(folder), "checkpoints": checkpoints_part(folder / "checkpoint")}
    for device in NAMES:
        parts[device] = device_part(newest(folder, device), device)
    measured = [path for device in NAMES if (path := newest(folder, device)) is not None]
    parts["trained"] = trained_part(folder / "train")
    parts["formats"] = formats_part(folder / "formats", folder.parent)
    parts["headline"] = headline(measured, folder / "train", folder.parents[1])

    def fill(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n\n{parts[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def device_part(path: Path | None, device: str) -> str:
    """Everything about one device's results."""
    if path is None:
        table = markdown(("aim", "wanted", "measured", "reached"), aims([])) if device == "cuda" else ""
        return "\n\n".join(filter(None, (NOT_YET, table)))
    results = Results.load(path)
    facts = results.machine
    where = f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    head = (
        f"{facts['date']}, {where}{facts['processor']}; torch {facts['torch']}, triton {facts['triton']}, Python "
        f"{facts['python']}, commit {facts['commit']}; `{facts['command']}` "
        f"([JSON](results/{path.name}), [CSV](results/{path.stem}.csv)). "
        f"{number_text(results.rows)}"
    )
    aimed = markdown(("aim", "wanted", "measured", "reached"), aims(results.rows)) if device == "cuda" else ""
    figures = "\n".join(f"![{ALT[name]}](results/plots/{figure_path(path, name, 'svg').name})" for name in FIGURES)
    parts = [aimed, "Ratios, above 1 where flatvars is faster:", averages_table(results.rows), lost_table(results.rows)]
    for case in IN_FULL:
        if rows := [row for row in results.rows if row.case == case]:
            parts += [f"**{case}** ({CASES[case]}), milliseconds:", case_table(rows)]
    if results.host:
        parts += ["Microseconds of the parts of a step that walk the variables:", host_table(results.host)]
    return "\n\n".join(filter(None, [*parts, figures, head]))


def number_text(rows: Sequence[Row]) -> str:
    """How many rows have a number, and why the others have none."""
    without = [row for row in rows if row.wall_ms is None and row.status != "skipped"]
    timed = sum(row.wall_ms is not None for row in rows)
    reasons = [f"{row.peer} on {row.case} {cell_text(row)}: {row.status}, {row.reason}" for row in without]
    tail = f" No number: {'; '.join(reasons)}." if reasons else ""
    return f"{timed} rows with a number.{tail}".replace("|", "/")


def averages_table(rows: Sequence[Row]) -> str:
    lines = [
        [a.case, a.ours, a.against, str(a.rows), f"{a.mean:.2f}x", f"{a.worst:.2f}x", a.worst_on]
        for a in averages(rows)
    ]
    return markdown(("case", "ours", "against", "rows", "geometric mean", "worst", "on"), lines)


def lost_table(rows: Sequence[Row]) -> str:
    lines = lost_lines(rows)
    return f"{lost_text(rows)}:\n\n{markdown(LOST_COLUMNS, lines)}" if lines else lost_text(rows)


def case_table(rows: Sequence[Row]) -> str:
    """One line a cell: ours, torch fused, and the best like peer of gradients as they come and of views."""
    lines = []
    for mine in (row for row in rows if row.peer == "flatvars"):
        peers = {row.peer: row for row in rows if row.cell == mine.cell}
        variants = [number(getattr(peers.get(peer), "wall_ms", None)) for peer in OURS]
        if mine.wall_ms is None:
            variants[0] = f"{mine.status}: {mine.reason}"
        against = [
            [
                f"{ours.best_peer} {number(getattr(peers.get(ours.best_peer), 'wall_ms', None))}",
                f"{number(ours.best_ratio, '{:.2f}x')} ({quartiles(ours.best_low, ours.best_high)})",
            ]
            if (ours := peers.get(held)) is not None and ours.best_peer
            else ["-", "-"]
            for held in HELD
        ]
        lines.append(
            [
                cell_text(mine),
                *variants,
                number(mine.host_ms),
                number(mine.launches, "{:,}"),
                number(mine.of_copy, "{:.0%}"),
                number(getattr(peers.get("torch fused"), "wall_ms", None)),
                number(mine.fused_ratio, "{:.2f}x"),
                *(text for pair in against for text in pair),
                mine.note or "-",
            ]
        )
    columns = ["on", *OURS, "host", "launches", "of copy", "torch fused", "ratio"]
    columns += ["best peer", "ratio (quartiles)", "best peer of views", "ratio (quartiles)", "note"]
    # A column that no line has anything in says nothing.
    kept = [i for i in range(len(columns)) if i == 0 or any(line[i] != "-" for line in lines)]
    return markdown([columns[i] for i in kept], [[line[i] for i in kept] for line in lines])


def host_table(host: Sequence[dict[str, float]]) -> str:
    return markdown(list(host[0]), [[f"{value:,.0f}" for value in line.values()] for line in host])


def checkpoints_part(folder: Path) -> str:
    """Saves and snapshots of every device they were measured on (`python -m bench.checkpoint`)."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        facts, lines = content["machine"], []
        for row in content["rows"]:
            against = [f"{row[key] / row['save']:.2f}x" for key in ("torch_save_and_sync", "torch_save", "disk")]
            stall = f"{row['snapshot'] / row['copy']:.2f}"
            lines.append([row["case"], *(number(row[key]) for key in CHECKPOINT_COLUMNS), *against, stall])
        parts.append(
            f"{facts['date']}, {facts['processor']}; torch {facts['torch']}, Python {facts['python']}, commit "
            f"{facts['commit']}; `{facts['command']}` ([JSON](results/checkpoint/{path.name})). Milliseconds, medians:"
        )
        ratios = ("torch.save and fsync / save", "torch.save / save", "disk / save", "snapshot / copy")
        parts.append(markdown(("case", *CHECKPOINT_COLUMNS.values(), *ratios), lines))
    return "\n\n".join(parts) or "Not measured yet. The command is `python -m bench.checkpoint`."


def peers_table(folder: Path) -> str:
    """Every peer with its formats, and the version that results were made with."""
    versions: dict[str, list[str]] = {}
    for device in NAMES:
        path = newest(folder, device)
        for row in Results.load(path).rows if path else []:
            found = versions.setdefault(row.peer, [])
            if row.version and row.version not in found:
                found.append(row.version)
    lines = [[name, ", ".join(versions.get(name, [])) or "-", load(PEERS[name]).formats] for name in PEERS]
    return markdown(("peer", "version", "formats and accuracy"), lines)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def command(arguments: Sequence[str]) -> int:
    """`python -m bench readme`: figures of the newest results, then the pages."""
    parser = argparse.ArgumentParser(prog="python -m bench readme", description=__doc__)
    parser.parse_args(arguments)
    for device in NAMES:
        path = newest(FOLDER, device)
        for drawn in draw(path) if path else []:
            print(drawn)
    for path in PAGES:
        path.write_text(page(path.read_text()))
        print(path)
    return 0
