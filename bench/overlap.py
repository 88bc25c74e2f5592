"""A training step on two ranks, with gradients averaged in the step, or in buckets while the backward pass runs.

    python -m bench.overlap [--width 512] [--depth 12] [--batch 256] [--grads views] [--bucket-cap-mb 25]

Two processes of one thread each over gloo, on a stack of square linear layers; all ways in the same processes, round by
round in turn. A round is timed from a barrier to a barrier. On a machine with as many cores as ranks, the threads that
send take their time from the backward pass: what is hidden there is what waits, not what works.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import flatvars as fv

RANKS = 2
WARM = 3  # rounds that are not counted: launches are compiled, and the order of buckets is learned


@dataclass(frozen=True)
class Work:
    """What is trained: `depth` layers of `width` x `width`, by batches of `batch` on each rank, `rounds` times."""

    width: int
    depth: int
    batch: int
    rounds: int
    grads: str
    caps: tuple[float, ...]


@dataclass
class Way:
    """One store and its times in ms: of the backward pass with what follows it in the block, of the step, of all.

    Attributes:
        early: Whether the backward pass starts buckets; else the step sends them, one behind the other.
    """

    cap: float | None
    early: bool
    model: nn.Module
    store: fv.VarStore
    optimizer: fv.optim.AdamW
    backward: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    def name(self) -> str:
        if self.cap is None:
            return "at once, in the step"
        return f"{self.cap:g} MiB, {'in the block' if self.early else 'in the step'}"


def make(work: Work, cap: float | None, early: bool, mesh: DeviceMesh) -> Way:
    """The same model for each way."""
    torch.manual_seed(0)
    layers = [(nn.Linear(work.width, work.width), nn.GELU()) for _ in range(work.depth)]
    model = nn.Sequential(*(layer for pair in layers for layer in pair))
    store = fv.VarStore.from_module(model, mesh=mesh, bucket_cap_mb=cap, grads=work.grads)
    return Way(cap, early, model, store, fv.optim.AdamW(store, lr=1e-4, max_norm=1.0))


def measure(work: Work, mesh: DeviceMesh) -> list[Way]:
    """All ways in turn, on the ranks of a mesh; every rank calls it."""
    ways = [make(work, None, False, mesh)]
    ways += [make(work, cap, early, mesh) for cap in work.caps for early in (False, True)]
    inputs = torch.randn(work.batch, work.width)
    for turn in range(WARM + work.rounds):
        for way in ways:
            dist.barrier(mesh.get_group())
            start = time.perf_counter()
            loss = way.model(inputs).square().mean()
            forward = time.perf_counter()
            with way.store.last_backward() if way.early else nullcontext():
                loss.backward()
            backward = time.perf_counter()
            way.optimizer.step()
            step = time.perf_counter()
            way.optimizer.zero_grad()
            dist.barrier(mesh.get_group())
            if turn >= WARM:
                way.backward.append(1e3 * (backward - forward))
                way.step.append(1e3 * (step - backward))
                way.all.append(1e3 * (time.perf_counter() - start))
    return ways


def table(ways: list[Way]) -> str:
    """Medians, and the fastest round."""
    lines = [f"{'ms':<24}{'backward':>10}{'step':>10}{'all':>10}{'fastest':>10}"]
    for way in ways:
        numbers = [*map(statistics.median, (way.backward, way.step, way.all)), min(way.all)]
        lines.append(f"{way.name():<24}{''.join(f'{number:>10.1f}' for number in numbers)}")
    return "\n".join(lines)


def _rank(rank: int, work: Work, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=RANKS)
    ways = measure(work, init_device_mesh("cpu", (RANKS,)))
    if rank == 0:
        (Path(folder) / "table").write_text(table(ways))
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.overlap", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--grads", choices=("gather", "views"), default="gather")
    parser.add_argument("--bucket-cap-mb", type=float, nargs="+", default=[25.0], metavar="MIB")
    args = parser.parse_args(argv)
    work = Work(args.width, args.depth, args.batch, args.rounds, args.grads, tuple(args.bucket_cap_mb))
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(_rank, (work, folder), nprocs=RANKS)  # type: ignore[no-untyped-call]
        print(f"{work.depth * work.width * (work.width + 1) / 1e6:.1f}M parameters, {work}")
        print((Path(folder) / "table").read_text())


if __name__ == "__main__":
    main()
