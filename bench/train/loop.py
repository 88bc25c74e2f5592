"""The training loop: both sides in lockstep on the same batches.

Side A makes its step, then side B, and the next time B goes first: whatever disturbs the machine hits both alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.train.measure import Stopwatch, WorkCounter, synchronize
from bench.train.options import Job
from bench.train.sides import Side
from bench.train.text import Text, sweep

# The first steps of a process allocate, compile and warm caches: they are trained, but not timed. One of them,
# when optimizer state exists already, runs under the counter instead.
UNTIMED_STEPS = 5
COUNTED_STEP = 2
# Logits of an evaluation's batch, where that is more than a training batch: 8 MB of them, so that a tiny model is not
# called two hundred times for the held-out text.
EVALUATED_LOGITS = 1 << 21

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Record:
    """What one side's run gave, step by step; times are NaN where a step was not timed."""

    losses: list[float] = field(default_factory=list)
    optimizer_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    bits_before: float = math.nan
    bits_after: float = math.nan
    work_count: int = 0


def _autocast(job: Job) -> torch.autocast:
    return torch.autocast(job.device.type, dtype=torch.bfloat16, enabled=job.amp)


@torch.no_grad()
def bits_per_byte(side: Side, text: Text, job: Job) -> float:
    """Mean cross entropy over the whole held-out text, in bits per byte."""
    # What fits into memory in training fits here.
    batch = max(job.batch // job.micro_batches, EVALUATED_LOGITS // (job.model.context * job.model.vocab))
    nats, count = 0.0, 0
    for inputs, targets in sweep(text.valid, batch, job.model.context):
        with _autocast(job):
            loss = side.model.loss(inputs, targets)
        nats += loss.item() * targets.numel()
        count += targets.numel()
    return nats / count / math.log(2)


def run_step(side: Side, batches: Batches, job: Job, measure: Callable[[Callable[[], None]], None]) -> Tensor:
    """One step of one side over its micro-batches; ``measure`` runs each piece of the optimizer part.

    Returns:
        The mean loss over the micro-batches, on the device.
    """
    total = torch.zeros((), device=job.device)
    for inputs, targets in batches:
        with _autocast(job):
            loss = side.model.loss(inputs, targets)
        (loss * side.loss_scale).backward()
        total += loss.detach()
        measure(side.accumulate)
    measure(side.update)
    side.scheduler.step()
    return total / len(batches)


def _timed_step(side: Side, batches: Batches, job: Job, record: Record, *, timed: bool, split: bool) -> None:
    stopwatch = Stopwatch(job.device, active=timed and split)
    synchronize(job.device)
    start = time.perf_counter()
    loss = run_step(side, batches, job, stopwatch)
    synchronize(job.device)
    step_seconds = time.perf_counter() - start
    # Waiting for the device around the optimizer part costs a GPU its head start, so a step whose parts are
    # timed says nothing about the whole. On a CPU there is nothing to wait for.
    whole = timed and not (split and job.device.type == "cuda")
    record.losses.append(loss.item())
    record.optimizer_ms.append(stopwatch.seconds * 1e3)
    record.step_ms.append(step_seconds * 1e3 if whole else math.nan)


def _counted_step(side: Side, batches: Batches, job: Job, record: Record) -> None:
    counter = WorkCounter(job.device)
    loss = run_step(side, batches, job, counter)
    record.work_count = counter.count
    record.losses.append(loss.item())
    record.optimizer_ms.append(math.nan)
    record.step_ms.append(math.nan)


def micro_batches(batch: tuple[Tensor, Tensor], job: Job) -> Batches:
    """A batch in as many equal parts as the job asks for."""
    inputs, targets = batch
    return list(zip(inputs.chunk(job.micro_batches), targets.chunk(job.micro_batches), strict=True))


def train(
    sides: list[Side],
    records: dict[str, Record],
    draw: Callable[[], tuple[Tensor, Tensor]],
    job: Job,
    first_step: int,
    after_step: Callable[[int], bool],
) -> None:
    """Train all sides from ``first_step`` up to ``job.stop_at``.

    Args:
        draw: Gives the next batch, inputs and targets.
        after_step: Hears how many steps are done, and says whether to go on.
    """
    for step in range(first_step, job.stop_at):
        batches = micro_batches(draw(), job)
        # On a GPU steps take turns: two are timed whole, two by parts, so that each side goes first in both kinds.
        split = job.device.type == "cpu" or step // 2 % 2 == 0
        for side in sides if step % 2 == 0 else reversed(sides):
            record = records[side.name]
            if step - first_step == COUNTED_STEP:
                _counted_step(side, batches, job, record)
            else:
                timed = step - first_step >= UNTIMED_STEPS
                _timed_step(side, batches, job, record, timed=timed, split=split)
        if not after_step(step + 1):
            return
