"""The main job on several ranks: `python -m bench.train --ranks 2 [--fsdp | --bucket-cap-mb 25]`.

One process with whole batches runs beside them.

Every rank takes its part of each batch; the store averages gradients and shares optimizer state out, or steps the
shards that FSDP2 made (`flatvars/distributed/README.md`). The losses are those of one process, but for the order of
additions.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from bench.train.gpt import GPT
from bench.train.options import Job, JobError
from bench.train.sides import FlatSide
from bench.train.text import draw_batch, read_text

# Largest difference of a loss that additions in another order explain, over a few hundred steps: a tenth of what the
# two sides of the job may differ by.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        losses: Of every step, the mean over the whole batch.
        state_bytes: Of the optimizer's states on each rank.
        seconds: Of the steps.
    """

    losses: list[float]
    state_bytes: list[int]
    seconds: float


def train(job: Job, mesh: DeviceMesh | None = None) -> Run:
    """Trains in this process: on this rank's part of each batch, or without a mesh on all of it."""
    rank, size = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    torch.manual_seed(job.seed)
    model = GPT(job.model).to(job.device)
    if mesh is not None and job.fsdp:
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    side = FlatSide(model, job, None if job.fsdp else mesh)
    text = read_text(job.device)
    generator = torch.Generator().manual_seed(job.seed)
    losses, start = [], time.perf_counter()
    for _ in range(job.stop_at):
        inputs, targets = draw_batch(text.train, job.batch, job.model.context, generator)
        mine = list(zip(*(part.chunk(size)[rank].chunk(job.micro_batches) for part in (inputs, targets)), strict=True))
        total = torch.zeros((), device=job.device)
        for k, some in enumerate(mine):
            loss = side.model.loss(*some)
            side.backward(loss, last=k == len(mine) - 1)
            total += loss.detach()
        side.update()
        side.scheduler.step()
        losses.append(total / len(mine))
    seconds = time.perf_counter() - start
    mean = torch.stack(losses)
    held = torch.tensor(sum(stream.nbytes for stream in side.optimizer.capture().streams.values()), device=job.device)
    everyone = [held]
    if mesh is not None:
        dist.all_reduce(mean, op=dist.ReduceOp.AVG, group=mesh.get_group())
        everyone = [torch.zeros_like(held) for _ in range(size)]
        dist.all_gather(everyone, held, group=mesh.get_group())
    return Run(mean.tolist(), [int(one) for one in everyone], seconds)


def _rank(rank: int, job: Job, folder: str) -> None:
    """One of the ranks, in a process of its own."""
    torch.set_num_threads(job.threads or max(1, torch.get_num_threads() // job.ranks))
    backend = "gloo" if job.device.type == "cpu" else "nccl"
    if job.device.type == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=job.ranks)
    run = train(job, init_device_mesh(job.device.type, (job.ranks,)))
    if rank == 0:
        torch.save(run.__dict__, f"{folder}/run")
    dist.destroy_process_group()


def compare(job: Job) -> dict[str, Any]:
    """Trains with ranks and without.

    Raises:
        JobError: the batch does not divide, or there are not enough GPUs.
    """
    if job.batch % (job.ranks * job.micro_batches):
        raise JobError(
            f"a batch of {job.batch} does not divide into {job.ranks} ranks of {job.micro_batches} micro-batches; give "
            f"--batch as a multiple of {job.ranks * job.micro_batches}"
        )
    if job.device.type == "cuda" and torch.cuda.device_count() < job.ranks:
        raise JobError(f"--ranks {job.ranks} needs as many GPUs, and torch sees {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_rank, (job, folder), nprocs=job.ranks)  # type: ignore[no-untyped-call]
        shared = Run(**torch.load(Path(folder) / "run"))
    alone = train(job)
    difference = max(abs(a - b) for a, b in zip(shared.losses, alone.losses, strict=True))
    return {
        "ranks": job.ranks,
        "steps": job.stop_at,
        "first_loss": [alone.losses[0], shared.losses[0]],
        "last_loss": [alone.losses[-1], shared.losses[-1]],
        "largest_loss_difference": difference,
        "state_bytes": [alone.state_bytes[0], shared.state_bytes],
        "seconds": [alone.seconds, shared.seconds],
    }


def table(found: dict[str, Any]) -> str:
    """The comparison as text."""
    whole, parts = found["state_bytes"]
    lines = [
        f"{'':<28}{'one process':>14}{str(found['ranks']) + ' ranks':>14}",
        *(f"{name.replace('_', ' '):<28}{found[name][0]:>14.6f}{found[name][1]:>14.6f}" for name in LOSSES),
        f"{'optimizer state, a rank':<28}{whole:>14,}{max(parts):>14,}",
        f"{'seconds':<28}{found['seconds'][0]:>14.1f}{found['seconds'][1]:>14.1f}",
        f"largest difference of a loss: {found['largest_loss_difference']:.2e} (at most {TOLERANCE:g})",
    ]
    return "\n".join(lines)


LOSSES = ("first_loss", "last_loss")
