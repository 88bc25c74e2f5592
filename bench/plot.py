"""`python -m bench plot`: bandwidth against size, time against the number of tensors, memory; PNG and SVG.

Each figure carries the digest of the results it shows, so that a figure of older ones is found (`is_current`).
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness.record import Results, Row

FOLDER = Path(__file__).parent / "results"
FIGURES = ("bandwidth", "tensors", "memory")
SUFFIXES = ("png", "svg")
# Ours in strong colors, in the front.
COLORS = {"flatvars": "#2b6cb0", "flatvars accumulate": "#63b3ed", "flatvars views": "#4fd1c5", "copy": "#555555"}


def digest(results: Path) -> str:
    return hashlib.sha256(results.read_bytes()).hexdigest()


def figure_path(results: Path, figure: str, suffix: str) -> Path:
    return results.parent / "plots" / f"{results.stem}-{figure}.{suffix}"


def is_current(results: Path) -> bool:
    """Whether all figures of a result file are there and were drawn from it as it is."""
    wanted = digest(results).encode()
    paths = [figure_path(results, figure, suffix) for figure in FIGURES for suffix in SUFFIXES]
    return all(path.is_file() and wanted in path.read_bytes() for path in paths)


def draw(results: Path) -> list[Path]:
    """Draws all figures of a result file beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    # A file is all that is wanted, on machines without a display too.
    matplotlib.use("Agg")
    # The same results give the same SVG.
    matplotlib.rcParams["svg.hashsalt"] = "flatvars"
    read = Results.load(results)
    title = read.machine.get("gpu") or read.machine["processor"]
    drawn = {"bandwidth": _bandwidth, "tensors": _tensors, "memory": _memory}
    paths = []
    for name, draw_into in drawn.items():
        figure = _new_figure(draw_into, read.rows, f"{title}, {read.machine['date']}")
        paths += [_save(figure, figure_path(results, name, suffix), digest(results)) for suffix in SUFFIXES]
    return paths


def _new_figure(draw_into: Any, rows: Sequence[Row], title: str) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    draw_into(axes, rows)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    return figure


def _save(figure: Any, path: Path, mark: str) -> Path:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"Description": mark} if path.suffix == ".png" else {"Description": mark, "Date": None}
    figure.savefig(path, dpi=110, metadata=stamp)
    if path.suffix == ".svg":
        pyplot.close(figure)
    return path


def _lines(axes: Any, rows: Sequence[Row], x: str, y: str) -> None:
    peers = sorted(dict.fromkeys(row.peer for row in rows), key=lambda peer: peer.startswith("flatvars"))
    for peer in peers:
        points = sorted((getattr(r, x), getattr(r, y)) for r in rows if r.peer == peer and getattr(r, y))
        if points:
            wide = 2.5 if peer == "flatvars" else 1.2
            axes.plot(
                *zip(*points, strict=True), marker="o", markersize=3, label=peer, color=COLORS.get(peer), linewidth=wide
            )


def _bandwidth(axes: Any, rows: Sequence[Row]) -> None:
    """Tail of one tensor: bytes over the device's own time."""
    _lines(axes, [r for r in rows if r.case == "tail" and r.tensors == 1], "elements", "gb_per_s")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("elements, in one tensor")
    axes.set_ylabel("GB/s (modelled bytes)")
    axes.set_title("norm, clip, AdamW, zero_grad: bandwidth against size", fontsize=10)


def _tensors(axes: Any, rows: Sequence[Row]) -> None:
    """Tail of the smallest total that comes in several numbers of tensors of one size."""
    tails = [r for r in rows if r.case == "tail" and "x" in r.on and r.on.split("x")[0].isdigit() and r.tensors > 1]
    # 300 tensors divide no round total: totals within a thousandth are one.
    totals: dict[int, set[int]] = {}
    for row in tails:
        totals.setdefault(round(math.log(row.elements) * 1e3), set()).add(row.tensors)
    chosen = max(totals, key=lambda total: (len(totals[total]), -total), default=None)
    same = [r for r in tails if round(math.log(r.elements) * 1e3) == chosen]
    _lines(axes, same, "tensors", "wall_ms")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tensors")
    axes.set_ylabel("ms")
    about = f"{max(r.elements for r in same):,}" if same else "no"
    axes.set_title(f"norm, clip, AdamW, zero_grad of {about} elements: time against number of tensors", fontsize=10)


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    """Bytes a parameter in the largest tail."""
    tails = [r for r in rows if r.case == "tail" and r.bytes_per_param is not None and r.peer != "copy"]
    largest = max((r.elements for r in tails), default=0)
    shown = sorted((r for r in tails if r.elements == largest), key=lambda r: r.peak_bytes_per_param or 0.0)
    names = [f"{row.peer}\n{row.like}" for row in shown]
    peak = [row.peak_bytes_per_param or 0.0 for row in shown]
    held = [row.bytes_per_param or 0.0 for row in shown]
    axes.barh(names, peak, color="#cbd5e0", label="peak in the tail")
    axes.barh(names, held, color=[COLORS.get(row.peer, "#d1762b") for row in shown], label="values, gradients, state")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("bytes a parameter")
    axes.set_title(f"memory of the tail, {largest:,} parameters", fontsize=10)


def command(arguments: Sequence[str]) -> int:
    """`python -m bench plot`."""
    parser = argparse.ArgumentParser(prog="python -m bench plot", description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help="JSON files; all in bench/results if not given")
    options = parser.parse_args(arguments)
    for results in options.results or sorted(FOLDER.glob("*.json")):
        for path in draw(results):
            print(path)
    return 0
