"""What bench/README.md says of the main job: its committed figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.report.table import number

MEASURED = {
    "optimizer_ms": "optimizer part, milliseconds",
    "step_ms": "whole step, milliseconds",
    "optimizer_work_count": "optimizer part, {unit}",
}


def trained_part(folder: Path) -> str:
    """Every run of both sides whose figures are in a folder."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if len(content["sides"]) == 2:
            parts += [_told(content, path), _table(content)]
    return "\n\n".join(parts) or "Not measured yet. The command is `python -m bench.train`."


def _told(content: dict[str, Any], path: Path) -> str:
    machine, agreement = content["machine"], content["agreement"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['torch_threads']} threads"
    equal = "bit-equal" if agreement["first_loss_bit_equal"] else "not bit-equal"
    bits = [side["valid_bits_per_byte_after"] for side in content["sides"].values()]
    return (
        f"{content['date'][:10]}, {where}; torch {machine['torch']}; `{content['command']}`: {content['steps']} steps, "
        f"{content['total_seconds']:.0f} s in all ([figures](results/train/{path.name}), "
        f"[plot](results/train/{path.stem}.png)). First losses {equal}, the largest difference of later ones "
        f"{agreement['largest_loss_difference']:.0e}; held-out text at {bits[0]:.3f} (torch) and {bits[1]:.3f} bits "
        "per byte afterwards."
    )


def _table(content: dict[str, Any]) -> str:
    lines = ["| | | torch | flatvars | ratio |", "| --- | --- | --- | --- | --- |"]
    for job, model in ((content, "GPT"), (content.get("many"), "small tensors")):
        if job is None:
            continue
        tensors = f"{job['tensors']:,} tensors, " if "tensors" in job else ""
        about = f"{model}: {tensors}{job['parameters']:,} parameters"
        for key, words in MEASURED.items():
            torch, ours = (side[key] for side in job["sides"].values())
            if torch is None or ours is None:
                continue
            numbers = f"{number(torch)} | {number(ours)} | {torch / ours:.2f}x"
            lines.append(f"| {about} | {words.format(unit=job['work_unit'])} | {numbers} |")
            about = ""
    return "\n".join(lines)
