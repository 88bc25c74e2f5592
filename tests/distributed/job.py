"""Checks of the main job on ranks (`python -m bench.train --ranks 2`), and of runs that go on with fewer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flatvars as fv
from bench.train.options import Job, parse_job
from bench.train.ranks import TOLERANCE, Run, train

from .checkpoints import contents, load
from .launch import World, on

BATCH = 8
ALONE: list[Run] = []


def job_of(ranks: int) -> Job:
    return parse_job(["--quick", "--steps", "3", "--micro-batches", "2", "--ranks", str(ranks)])


def warm() -> None:
    """Trains in one process, before the ranks are forked: what is compiled and found, all have."""
    ALONE.append(train(job_of(2)))


@on(2)
def check_the_job_on_ranks(world: World) -> None:
    job, alone = job_of(world.size), ALONE[0]
    assert alone.losses[-1] < alone.losses[0]
    for about in ({}, {"fsdp": True}, {"bucket_cap_mb": 0.05}):
        run = train(replace(job, **about), world.mesh)
        assert max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)) < TOLERANCE, about
        # What is padded: every range, or every shard of a variable.
        assert max(run.state_bytes) < 1.2 * alone.state_bytes[0] / world.size, about


def made(mesh: Any = None) -> tuple[nn.Module, fv.optim.AdamW]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.Linear(17, 3))
    model.register_parameter("unused", nn.Parameter(torch.ones(5)))
    return model, fv.optim.AdamW(fv.VarStore.from_module(model, mesh=mesh), lr=0.02, max_norm=0.5)


def backward(model: nn.Module, rank: int, size: int, step: int) -> Tensor:
    """On one rank's part of a batch."""
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(BATCH, width, generator=generator).chunk(size)[rank] for width in (6, 3))
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss.detach()


def curve(model: nn.Module, opt: Any, steps: range, rank: int = 0, size: int = 1, group: Any = None) -> list[float]:
    """Losses of whole batches."""
    losses = []
    for step in steps:
        losses.append(backward(model, rank, size, step))
        opt.step()
        opt.zero_grad()
    mean = torch.stack(losses)
    if size > 1:
        dist.all_reduce(mean, op=dist.ReduceOp.AVG, group=group)
    return [float(loss) for loss in mean]


def check_a_run_goes_on_with_fewer_ranks(world: World) -> None:
    """Three steps on all ranks, three on half of them, three on one: the losses of one process."""
    expected = curve(*made(), range(9))
    size, group, losses = world.size, None, []
    for third in range(3):
        members = list(range(size))
        group = dist.new_group(members)
        if world.rank in members:
            model, opt = made(dist.device_mesh.DeviceMesh.from_group(group, "cpu"))
            if third:
                load(model, opt, world.folder / f"fewer.{third - 1}", process_group=group)
            losses += curve(model, opt, range(3 * third, 3 * third + 3), world.rank, size, group)
            dcp.save(contents(model, opt), checkpoint_id=world.folder / f"fewer.{third}", process_group=group)
        dist.barrier()
        size = max(size // 2, 1)
    if world.rank == 0:
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def check_ddp_around_a_module_of_a_mesh(world: World) -> None:
    """Averages are averaged again: no harm."""
    for bucket_view in (False, True):
        (model, opt), (alone, reference) = made(world.mesh), made()
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view, find_unused_parameters=True)
        for step in range(3):
            with wrapped.no_sync():
                backward(wrapped, world.rank, world.size, 10 + step)
            backward(wrapped, world.rank, world.size, step)
            for one in (10 + step, step):
                backward(alone, 0, 1, one)
            for each in (opt, reference):
                each.step()
                each.zero_grad()
        for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert bool((model.unused == 1.0).all()), "what has no gradient does not even decay"
