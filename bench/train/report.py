"""The job's results: figures computed from the records, written as a table and as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.train.loop import Record
from bench.train.measure import WorkCounter
from bench.train.options import Job


def median(values: list[float]) -> float | None:
    """The median of the values that were measured, or None if none was."""
    measured = [value for value in values if not math.isnan(value)]
    return statistics.median(measured) if measured else None


def side_figures(record: Record) -> dict:
    return {
        "final_train_loss": record.losses[-1],
        "valid_bits_per_byte_before": record.bits_before,
        "valid_bits_per_byte_after": record.bits_after,
        "optimizer_ms": median(record.optimizer_ms),
        "step_ms": median(record.step_ms),
        "optimizer_work_count": record.work_count or None,
    }


def _agreement(torch_losses: list[float], flat_losses: list[float]) -> dict:
    differences = [abs(a - b) for a, b in zip(torch_losses, flat_losses, strict=True)]
    # A NaN on one side must show as the largest difference, not vanish in a comparison.
    largest = max(range(len(differences)), key=lambda i: math.inf if math.isnan(differences[i]) else differences[i])
    return {
        "first_loss_bit_equal": torch_losses[0] == flat_losses[0],
        "largest_loss_difference": differences[largest],
        "at_step": largest + 1,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _machine(job: Job) -> dict:
    gpu = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def figures(job: Job, records: dict[str, Record], parameters: int, text: str, seconds: float) -> dict:
    """All figures of the run, ready for JSON."""
    result = {
        "command": job.command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(job),
        "text": text,
        "parameters": parameters,
        "steps": len(next(iter(records.values())).losses),
        "batch": job.batch,
        "context": job.model.context,
        "micro_batches": job.micro_batches,
        "amp": job.amp,
        "format": job.format,
        "work_unit": WorkCounter.unit(job.device),
        "total_seconds": round(seconds, 1),
        "sides": {name: side_figures(record) for name, record in records.items()},
    }
    if "flatvars" in records:
        import flatvars

        result["machine"]["flatvars"] = getattr(flatvars, "__version__", None)
    if len(records) == 2:
        result["agreement"] = _agreement(records["torch"].losses, records["flatvars"].losses)
    return result


def write_json(result: dict, records: dict[str, Record], path: Path) -> None:
    """Write the figures, and the loss of every step, so that a plot can be made again from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    losses = {name: record.losses for name, record in records.items()}
    path.write_text(json.dumps({**result, "losses": losses}, indent=1) + "\n", encoding="utf-8")


def _row(label: str, values: list[float | None], form: str, ratio: bool = False) -> str:
    cells = ["not measured" if value is None else format(value, form) for value in values]
    line = f"  {label:<44}" + "".join(f"{cell:>14}" for cell in cells)
    if ratio and len(values) == 2 and None not in values:
        line += f"{values[0] / values[1]:>12.2f}x"
    return line


def _head(sides: dict) -> str:
    return f"  {'':<44}" + "".join(f"{name:>14}" for name in sides) + (f"{'ratio':>13}" if len(sides) == 2 else "")


def many_table(result: dict) -> str:
    """The figures of the second comparison, likewise."""
    sides = result["sides"]
    keys = {"optimizer part, median ms per step": ("optimizer_ms", ".3f"), "whole step, median ms": ("step_ms", ".2f")}
    keys[f"optimizer part, {result['work_unit']}"] = ("optimizer_work_count", "d")
    about = (
        f"A model of {result['tensors']:,} small tensors, {result['parameters']:,} parameters, {result['steps']} steps:"
    )
    rows = [_row(label, [side[key] for side in sides.values()], form, True) for label, (key, form) in keys.items()]
    losses = _row("loss, last step", [side["final_train_loss"] for side in sides.values()], ".5f")
    return "\n".join([about, _head(sides), losses, *rows])


def table(result: dict) -> str:
    """The figures as a table for people; the last column is torch divided by flatvars."""
    sides = result["sides"]

    def values(key: str) -> list[float | None]:
        return [side[key] for side in sides.values()]

    lines = [
        _head(sides),
        _row("train loss, last step (nats per byte)", values("final_train_loss"), ".4f"),
        _row("validation bits per byte, before", values("valid_bits_per_byte_before"), ".3f"),
        _row("validation bits per byte, after", values("valid_bits_per_byte_after"), ".3f"),
        _row("optimizer part, median ms per step", values("optimizer_ms"), ".3f", ratio=True),
        _row("whole step, median ms", values("step_ms"), ".2f", ratio=True),
        _row(f"optimizer part, {result['work_unit']}", values("optimizer_work_count"), "d", ratio=True),
    ]
    if "agreement" in result:
        agreement = result["agreement"]
        equal = "bit-equal" if agreement["first_loss_bit_equal"] else "NOT bit-equal"
        if result["format"] != "plain":
            lines.append(f"  flatvars stores in the format {result['format']}, so that the two runs differ.")
        lines.append(
            f"  first losses {equal}; largest loss difference "
            f"{agreement['largest_loss_difference']:.2e}, at step {agreement['at_step']}"
        )
    if result["micro_batches"] > 1:
        lines.append(
            "  With micro-batches torch adds up gradients inside its backward passes, which only the whole step "
            "counts;\n  flatvars does it in accumulate, which the optimizer part counts as well."
        )
    return "\n".join(lines)
