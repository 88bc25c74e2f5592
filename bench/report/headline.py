"""The measured result at the top of the README: a few rows of the newest committed results, and one figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.harness.record import Results, Row
from bench.plot import figure_path
from bench.report.table import number

SHOWN = (
    ("tail", "10000x256", "norm, clip, AdamW, zero_grad: 10,000 tensors of 256"),
    ("tail", "1000x1024", "the same: 1,000 tensors of 1,024"),
    ("tail", "gpt2", "the same: GPT-2 small"),
    ("tail", "gpt2-2layers", "the same: GPT-2 small with 2 layers, 54 million parameters"),
    ("tail", "resnet101", "the same: ResNet-101"),
    ("tail", "1x16777216", "the same: one tensor of 16.8 million"),
    ("tail", "1x1073741824", "the same: one tensor of 10^9"),
    ("train", "train-gpt-1M", "a whole training step of a GPT with a million parameters"),
    ("train", "train-gpt2", "a whole training step of GPT-2 small"),
)
"""Case, workload, and what they are in words: small and large, won and lost."""


def headline(paths: Sequence[Path], trained: Path, base: Path) -> str:
    """A table and a figure for each device that was measured.

    Args:
        paths: Newest results of each device.
        trained: Folder of the main job's results.
        base: What links are relative to.
    """
    parts = []
    for path in paths:
        results = Results.load(path)
        facts = results.machine
        who = f"{facts['gpu']}" if "gpu" in facts else f"{facts['processor']}"
        rows = [line for case, on, words in SHOWN if (line := _line(results.rows, case, on, words))]
        rows += _trained(trained / f"small-{facts['device']}.json")
        figure = figure_path(path, "tensors", "svg").relative_to(base)
        lines = ["| milliseconds | torch `fused=True` | flatvars | times as fast |", "| --- | --- | --- | --- |", *rows]
        told = f"{who}; torch {facts['torch']}, {facts['date']}, `{facts['command']}`; medians of rounds in turn"
        told += ", ratios by rounds."
        image = f"![time of norm, clip, AdamW and zero_grad against the number of tensors, by library]({figure})"
        parts += ["\n".join(lines), told, image]
    return "\n\n".join(parts) or "Not measured yet. The command is `python -m bench --out bench/results`."


def _line(rows: Sequence[Row], case: str, on: str, words: str) -> str | None:
    found = [r for r in rows if (r.case, r.on, r.format, r.optimizer) == (case, on, "float32", "adamw")]
    mine = next((r for r in found if r.peer == "flatvars"), None)
    fused = next((r for r in found if r.peer == "torch fused"), None)
    if mine is None or fused is None or mine.fused_ratio is None:
        return None
    return f"| {words} | {number(fused.wall_ms)} | {number(mine.wall_ms)} | {number(mine.fused_ratio, '{:.2f}')} |"


def _trained(path: Path) -> list[str]:
    """The optimizer part of the main job, where its file is of both sides."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    lines = []
    for job, words in ((content, "GPT"), (content.get("many"), "model of many small tensors")):
        sides = (job or {}).get("sides", {})
        times = [sides.get(name, {}).get("optimizer_ms") for name in ("torch", "flatvars")]
        if None in times or len(times) < 2:
            continue
        about = f"optimizer part of the main job's {words}, {job['parameters']:,} parameters"
        lines.append(f"| {about} | {number(times[0])} | {number(times[1])} | {times[0] / times[1]:.2f} |")
    return lines
