"""The training job's command line, checked and made into one immutable ``Job``."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.train.gpt import GPTConfig

RESULTS = Path(__file__).parents[1] / "results" / "train"
SIDES = ("torch", "flatvars")
VALUES: dict[str, dict[str, Any]] = {
    "": {},
    "split": {"dtype": torch.bfloat16, "values": "split"},
    "corrected": {"dtype": torch.bfloat16, "values": "corrected"},
    "stochastic": {"dtype": torch.bfloat16, "values": "stochastic"},
}
STATES: dict[str, dict[str, Any]] = {
    "": {},
    "bfloat16": {"state_dtype": torch.bfloat16},
    "root8": {"state_format": "root8"},
    "log4": {"state_format": {"exp_avg": "root8", "exp_avg_sq": "log4"}},
}
FORMATS = {
    "-".join(filter(None, (values, state))) or "plain": (VALUES[values], STATES[state])
    for values in VALUES
    for state in STATES
}
"""How flatvars stores values and the states of its AdamW: arguments of the store, and of the optimizer."""


class JobError(Exception):
    """The job cannot be done as it was asked for; the message says why and what to do."""


@dataclass(frozen=True)
class Preset:
    """A model with the batch (sequences per step), steps and peak learning rate that suit it.

    ``threads`` is for CPU work; None leaves torch its own choice.
    """

    model: GPTConfig
    batch: int
    steps: int
    lr: float
    threads: int | None = None


PRESETS = {
    # As deep as GPT-2 small, and so of as many tensors.
    "small": Preset(GPTConfig(vocab=256, context=64, layers=12, heads=4, width=64), batch=16, steps=600, lr=2e-3),
    "wide": Preset(GPTConfig(vocab=256, context=64, layers=4, heads=4, width=128), batch=16, steps=600, lr=2e-3),
    # GPT-2's vocabulary, padded to a multiple of 64. Bytes use its first 256 rows only; the others are there so
    # that the model has GPT-2's parameter count and the head costs what it costs there.
    "gpt2": Preset(GPTConfig(vocab=50304, context=1024, layers=12, heads=12, width=768), batch=8, steps=300, lr=6e-4),
    # One thread: with two, which wait for each other at the end of every operator, the 30 steps took about 50
    # seconds instead of 4 to 9 on two cores that other work kept busy.
    "quick": Preset(
        GPTConfig(vocab=256, context=32, layers=2, heads=2, width=32), batch=8, steps=30, lr=3e-3, threads=1
    ),
}


@dataclass(frozen=True)
class Job:
    """Everything one invocation was asked to do."""

    preset: str
    model: GPTConfig
    device: torch.device
    sides: tuple[str, ...]
    steps: int
    stop_at: int
    batch: int
    micro_batches: int
    lr: float
    freeze: tuple[str, ...]
    seed: int
    amp: bool
    threads: int | None
    deterministic: bool
    out: Path
    save: Path | None
    save_every: int
    resume: Path | None
    plot: bool
    ranks: int
    fsdp: bool
    bucket_cap_mb: float | None
    paced: bool
    format: str
    command: str

    @property
    def label(self) -> str:
        """The stem of the result files: runs of another preset, device, side or format do not overwrite each other."""
        only = "" if len(self.sides) == len(SIDES) else f"-{self.sides[0]}-only"
        form = "" if self.format == "plain" else f"-{self.format}"
        return f"{self.preset}-{self.device.type}{only}{form}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} was given, a number of at least 1 is needed")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.train",
        description="Train one GPT twice, in lockstep: with flatvars, and with torch's own fused AdamW.",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one, else cpu")
    add(
        "--preset",
        choices=("small", "wide", "gpt2"),
        default="small",
        help="wide: 4 layers instead of 12; gpt2: 124M parameters, for a GPU",
    )
    add("--quick", action="store_true", help="a tiny model and 30 steps, to see that everything works")
    add("--only", choices=SIDES, help="run one side alone")
    add("--steps", type=_positive, help="length of the run and of its learning-rate schedule")
    add("--stop-at", type=_positive, metavar="N", help="stop after step N of the schedule (then --save, --resume)")
    add("--batch", type=_positive, help="sequences per step")
    add("--micro-batches", type=_positive, default=1, metavar="K", help="accumulate gradients over K parts of a batch")
    add("--format", choices=FORMATS, default="plain", help="of flatvars' values and state; torch's stay plain")
    add("--freeze", action="append", default=[], metavar="PATTERN", help="glob on parameter names; may be repeated")
    add("--lr", type=float, help="peak learning rate")
    add("--seed", type=int, default=0, help="of the initial weights, the batches and the sample")
    add("--amp", action=argparse.BooleanOptionalAction, help="bf16 autocast; default: on a GPU that supports it")
    add("--threads", type=_positive, metavar="N", help="CPU threads; one is faster than two on a busy machine")
    add(
        "--deterministic", action="store_true", help="on a GPU, deterministic kernels: resuming is then bit-equal there"
    )
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the figures (JSON) and the plot (PNG) go")
    add("--save", type=Path, metavar="PATH", help="write a checkpoint of the run at its end")
    add("--save-every", type=_positive, default=0, metavar="N", help="... and after every N steps")
    add("--resume", type=Path, metavar="PATH", help="continue a saved run up to --steps")
    add(
        "--ranks",
        type=_positive,
        default=0,
        metavar="N",
        help="flatvars alone, on N ranks that share state, beside one process",
    )
    add("--fsdp", action="store_true", help="with --ranks: FSDP2 divides the model, and flatvars steps its shards")
    add(
        "--bucket-cap-mb",
        type=float,
        metavar="MIB",
        help="with --ranks: average gradients in buckets of so many MiB while the last backward pass of a step runs",
    )
    add("--no-plot", action="store_true", help="write no PNG")
    return parser


def _device(wanted: str | None, parser: argparse.ArgumentParser) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        parser.error("--device cuda was given, but torch sees no GPU here; use --device cpu")
    return torch.device(wanted or ("cuda" if has_gpu else "cpu"))


def parse_job(argv: list[str]) -> Job:
    """Turn the command line into a job; a wrong one ends the process with a message, as argparse does."""
    parser = _parser()
    args = parser.parse_args(argv)
    name = "quick" if args.quick else args.preset
    preset = PRESETS[name]
    device = _device(args.device, parser)
    batch = args.batch or preset.batch
    if batch % args.micro_batches:
        parser.error(f"--batch {batch} does not divide into --micro-batches {args.micro_batches} equal parts")
    if args.fsdp and not args.ranks:
        parser.error("--fsdp divides the model over ranks; say over how many: --ranks N")
    if args.bucket_cap_mb is not None and (not args.ranks or args.fsdp):
        parser.error("--bucket-cap-mb is of ranks that share state; give --ranks N, and no --fsdp")
    if args.save_every and not args.save:
        parser.error("--save-every needs --save PATH, the file to write")
    steps = args.steps or preset.steps
    bf16_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Job(
        preset=name,
        model=preset.model,
        device=device,
        sides=(args.only,) if args.only else SIDES,
        steps=steps,
        stop_at=min(args.stop_at or steps, steps),
        batch=batch,
        micro_batches=args.micro_batches,
        lr=args.lr or preset.lr,
        freeze=tuple(args.freeze),
        seed=args.seed,
        amp=bf16_gpu if args.amp is None else args.amp,
        threads=args.threads or preset.threads,
        deterministic=args.deterministic,
        out=args.out,
        save=args.save,
        save_every=args.save_every,
        resume=args.resume,
        plot=not args.no_plot,
        ranks=args.ranks,
        fsdp=args.fsdp,
        bucket_cap_mb=args.bucket_cap_mb,
        # A run of so many steps, or that goes on in another, is the same on every machine.
        paced=not (args.steps or args.stop_at or args.save or args.resume or args.quick),
        format=args.format,
        command=shlex.join(["python", "-m", "bench.train", *argv]),
    )
