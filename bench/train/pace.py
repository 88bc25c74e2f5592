"""How fast the machine is at this moment: the job then takes fewer steps rather than more minutes."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from bench.train.loop import bits_per_byte, micro_batches, run_step
from bench.train.measure import synchronize
from bench.train.options import Job
from bench.train.sides import build_sides
from bench.train.text import Text, draw_batch

LIMIT = 165.0
"""Seconds from the start of the process to its end: some less than the three minutes that a run may take."""
AFTERWARDS = 20.0
"""Seconds for compiling, the second comparison, the sample and the plots."""
FEWEST = 60
"""Steps: with fewer, a median says nothing."""
PROBED = 6


def affordable(job: Job, text: Text, started: float) -> int:
    """How many steps of the schedule fit into the time there is, by a few steps of torch's side on a copy.

    Args:
        started: `time.perf_counter()` when the process began.
    """
    (side,) = build_sides(replace(job, sides=("torch",)))
    generator = torch.Generator().manual_seed(job.seed)

    def seconds(steps: int) -> float:
        synchronize(job.device)
        start = time.perf_counter()
        for _ in range(steps):
            batch = draw_batch(text.train, job.batch, job.model.context, generator)
            run_step(side, micro_batches(batch, job), job, lambda work: work())
        synchronize(job.device)
        return time.perf_counter() - start

    seconds(2)
    step = seconds(PROBED) / PROBED
    start = time.perf_counter()
    bits_per_byte(side, text, job)
    evaluation = time.perf_counter() - start
    left = LIMIT - (time.perf_counter() - started) - AFTERWARDS - 4 * evaluation
    return max(min(FEWEST, job.steps), min(job.steps, int(left / (2 * step))))
