"""Storage formats side by side, on the GPT of the main job: `python -m bench.formats --steps 300`.

All are trained at once from the same weights, on the same batches. Of each: the mean loss of the last 20 steps, bytes a
parameter of values and optimizer state as they lie in memory, and the median of the optimizer's milliseconds.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from dataclasses import replace
from statistics import mean, median
from typing import Any

import torch
from torch import nn

import flatvars as fv
from bench.train.gpt import GPT
from bench.train.loop import Record, train
from bench.train.options import Job, parse_job
from bench.train.sides import BETAS, MAX_NORM, NO_DECAY, WEIGHT_DECAY, Side
from bench.train.text import draw_batch, read_text

LAST = 20
"""Steps whose losses are averaged."""

SPLIT = {"dtype": torch.bfloat16, "values": "split"}
HALF = {"state_dtype": torch.bfloat16}
ROOT = {"state_format": "root8"}
SMALLEST = {"state_format": {"exp_avg": "root8", "exp_avg_sq": "log4"}}
STOCHASTIC = {"dtype": torch.bfloat16, "values": "stochastic"}
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32": ({}, {}),
    "float32, bfloat16 state": ({}, HALF),
    "float32, root8 state": ({}, ROOT),
    "split": (SPLIT, {}),
    "split, bfloat16 state": (SPLIT, HALF),
    "split, root8 state": (SPLIT, ROOT),
    "split, root8 and log4 state": (SPLIT, SMALLEST),
    "stochastic": (STOCHASTIC, {}),
    "stochastic, root8 state": (STOCHASTIC, ROOT),
    "stochastic, root8 and log4": (STOCHASTIC, SMALLEST),
    "bfloat16": ({"dtype": torch.bfloat16}, {}),
}
"""By name: arguments of the store, and of the optimizer."""


class FormatSide(Side):
    """A store and its AdamW in one of the formats, clipped and scheduled as in the main job."""

    def __init__(self, name: str, model: nn.Module, job: Job) -> None:
        stored, kept = FORMATS[name]
        self.name = name
        self.store = fv.VarStore.from_module(model, **stored)
        groups = [{"params": list(NO_DECAY), "weight_decay": 0.0}, {"params": "*", "weight_decay": WEIGHT_DECAY}]
        options = {"lr": job.lr, "betas": BETAS, "max_norm": MAX_NORM}
        super().__init__(model, fv.optim.AdamW(groups, store=self.store, **options, **kept), job)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def bytes_of_a_parameter(self) -> float:
        return self.store.registry.streams.nbytes / self.store.numel


def run(job: Job, names: list[str]) -> str:
    """Trains them and returns a table."""
    text = read_text(job.device)
    torch.manual_seed(job.seed)
    model = GPT(job.model).to(job.device)
    sides = [FormatSide(name, copy.deepcopy(model), job) for name in names]
    records = {side.name: Record() for side in sides}
    generator = torch.Generator().manual_seed(job.seed)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        return draw_batch(text.train, job.batch, job.model.context, generator)

    train(sides, records, draw, job, 0, lambda done: True)
    rows = [f"{'format':<30}{'last losses':>14}{'bytes a parameter':>19}{'optimizer ms':>14}"]
    for side in sides:
        record = records[side.name]
        times = [ms for ms in record.optimizer_ms if not math.isnan(ms)]
        loss, taken = mean(record.losses[-LAST:]), median(times) if times else math.nan
        rows.append(f"{side.name:<30}{loss:>14.4f}{side.bytes_of_a_parameter:>19.2f}{taken:>14.2f}")
    return "\n".join(rows)


def main(argv: list[str]) -> int:
    """Runs the job and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.formats", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of the run and of its learning-rate schedule")
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--only", choices=FORMATS, action="append", help="one of the formats; may be repeated")
    args = parser.parse_args(argv)
    job = parse_job(["--steps", str(args.steps), *(["--quick"] if args.quick else [])])
    if job.threads:
        torch.set_num_threads(job.threads)
    print(run(replace(job, amp=False), args.only or list(FORMATS)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
