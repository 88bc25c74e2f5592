"""Saving and resuming the job: both sides, the step, the batches' random state and the records so far."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import torch

from bench.train.loop import Record
from bench.train.options import Job, JobError
from bench.train.sides import Side


def _identity(job: Job) -> dict:
    """What must not change between saving and resuming, or the run would be another one."""
    return {
        "model": asdict(job.model),
        "sides": list(job.sides),
        "batch": job.batch,
        "micro_batches": job.micro_batches,
        "lr": job.lr,
        "freeze": list(job.freeze),
        "seed": job.seed,
        "amp": job.amp,
        "format": job.format,
    }


def save(
    path: Path, sides: list[Side], records: dict[str, Record], generator: torch.Generator, job: Job, step: int
) -> None:
    """Write a checkpoint; a reader sees the old file or the whole new one, never a part."""
    content = {
        "identity": _identity(job),
        "step": step,
        "generator": generator.get_state(),
        "sides": {side.name: side.state_dict() for side in sides},
        "records": {name: asdict(record) for name, record in records.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic only within one file system.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def resume(path: Path, sides: list[Side], generator: torch.Generator, job: Job) -> tuple[int, dict[str, Record]]:
    """Load a checkpoint into the sides and the generator.

    Returns:
        The number of steps done, and the records so far.

    Raises:
        JobError: the checkpoint is of a run with other options.
    """
    content = torch.load(path, map_location=job.device, weights_only=True)
    wanted = _identity(job)
    different = [key for key, value in content["identity"].items() if wanted[key] != value]
    if different:
        changes = "; ".join(f"{key}: saved {content['identity'][key]}, now {wanted[key]}" for key in different)
        raise JobError(f"{path} is a checkpoint of another run ({changes}); resume with the options it was saved with")
    for side in sides:
        side.load_state_dict(content["sides"][side.name])
    # A generator's state is a CPU tensor, wherever the rest was mapped to.
    generator.set_state(content["generator"].cpu())
    return content["step"], {name: Record(**record) for name, record in content["records"].items()}
