"""The main job's GPT in every format at once, from the same weights, on the same batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

import torch

from bench.formats.sides import FORMATS, PEERS, FormatSide, PeerSide
from bench.harness.machine import machine
from bench.train.gpt import GPT
from bench.train.loop import COUNTED_STEP, Record, train
from bench.train.options import Job
from bench.train.sides import Side
from bench.train.text import draw_batch, read_text

LAST = 20
"""Steps whose losses are averaged."""
TRIED = COUNTED_STEP
"""Steps by which a peer shows that it runs, on weights that are then thrown away."""

Draw = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def run(job: Job, names: Sequence[str], command: str) -> dict[str, Any]:
    """Trains all of them.

    Args:
        names: Of `FORMATS` and `PEERS`. A peer that does not run is named with its error.
        command: What was typed.

    Returns:
        What `table` and the figure are made of, ready for JSON.
    """
    text = read_text(job.device)

    def batches() -> Draw:
        generator = torch.Generator().manual_seed(job.seed)
        return lambda: draw_batch(text.train, job.batch, job.model.context, generator)

    torch.manual_seed(job.seed)
    model = GPT(job.model).to(job.device)
    failed = {name: why for name in names if name in PEERS and (why := why_not(name, model, job, batches()))}
    kinds = {**dict.fromkeys(FORMATS, FormatSide), **dict.fromkeys(PEERS, PeerSide)}
    sides = [kinds[name](name, copy.deepcopy(model), job) for name in names if name not in failed]
    records = {side.name: Record() for side in sides}
    train(list[Side](sides), records, batches(), job, 0, lambda done: True)
    rows = [row(side, records[side.name]) for side in sides]
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "machine": machine(job.device.type, command),
        "parameters": parameters,
        "steps": job.stop_at,
        "last": LAST,
        "rows": rows,
        "failed": failed,
        "losses": {name: [round(loss, 5) for loss in record.losses] for name, record in records.items()},
    }


def joined(first: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """One result of two runs of the same job, of which the first stays where both have a row.

    Raises:
        ValueError: they are of different jobs, or a format that both trained has other losses.
    """
    both = first["losses"].keys() & more["losses"].keys()
    if not both or any(first["losses"][name] != more["losses"][name] for name in both):
        raise ValueError("the runs are not of the same job: a format that both train must have the same losses")
    rows = first["rows"] + [row for row in more["rows"] if row["name"] not in both]
    return {
        **first,
        "rows": rows,
        "failed": {**first["failed"], **more["failed"]},
        "losses": {**more["losses"], **first["losses"]},
    }


def why_not(name: str, model: GPT, job: Job, draw: Draw) -> str | None:
    """Why another library cannot do the job here, found by trying; None if it can."""
    try:
        side = PeerSide(name, copy.deepcopy(model), job)
        for _ in range(TRIED):
            side.model.loss(*draw()).backward()
            side.update()
    except Exception as error:  # whatever it is, it is that library's answer
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return None


def row(side: FormatSide | PeerSide, record: Record) -> dict[str, Any]:
    times = [ms for ms in record.optimizer_ms if not math.isnan(ms)]
    whole = [ms for ms in record.step_ms if not math.isnan(ms)]
    return {
        "name": side.name,
        "library": side.library,
        "loss": mean(record.losses[-LAST:]),
        "bytes": side.bytes_of_a_parameter,
        "optimizer_ms": median(times) if times else None,
        "step_ms": median(whole) if whole else None,
    }
