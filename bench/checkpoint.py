"""Checkpoints beside torch.save of model and optimizer, on the same disk.

python -m bench.checkpoint               # in the system's folder for temporary files
python -m bench.checkpoint --folder /mnt/disk --case 1000x65536
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import flatvars as fv
from bench.cases.hyper import HYPER
from bench.cases.material import gradients, parameters
from bench.harness.machine import machine
from bench.workloads import Workload, workload
from flatvars.checkpoint import SnapshotRing

PIECE = 1 << 24
CASES = ("1000x1024", "10000x256", "1000x16384", "1000x65536")


@dataclass
class Contender:
    """A trained model with its optimizer: flatvars' or torch's."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    store: fv.VarStore | None


def make(work: Workload, library: str) -> Contender:
    model = torch.nn.ParameterList(parameters(work, "cpu"))
    params = list(model.parameters())
    hyper = HYPER["adamw"]
    store = fv.VarStore.from_module(model) if library == "flatvars" else None
    optimizer: Any = fv.optim.AdamW(store, **hyper) if store else torch.optim.AdamW(params, fused=True, **hyper)
    for param, grad in zip(params, gradients(work, "cpu"), strict=True):
        param.grad = grad
    optimizer.step()
    optimizer.zero_grad()
    return Contender(model, optimizer, store)


def torch_save(contender: Contender, folder: Path, *, sync: bool) -> None:
    """The usual two files; `sync` waits for the disk, as a save of flatvars does."""
    for name, owner in (("model.pt", contender.model), ("optimizer.pt", contender.optimizer)):
        with (folder / name).open("wb") as file:
            torch.save(owner.state_dict(), file)
            if sync:
                file.flush()
                os.fsync(file.fileno())


def in_turn(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def gate(work: Workload, ours: Contender, folder: Path) -> None:
    """What was saved loads equal, or no number is printed."""
    assert ours.store is not None
    ours.store.save(folder / "gate.safetensors", ours.optimizer)
    other = make(work, "flatvars")
    assert other.store is not None
    with torch.no_grad():
        other.store.values.zero_()
    other.store.load(folder / "gate.safetensors", other.optimizer)
    assert torch.equal(other.store.values, ours.store.values), "a checkpoint did not come back"
    (folder / "gate.safetensors").unlink()


def measure(work: Workload, folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of saves, and of what training waits for."""
    ours, theirs = make(work, "flatvars"), make(work, "torch")
    store = ours.store
    assert store is not None
    gate(work, ours, folder)
    grads = gradients(work, "cpu")
    ring = SnapshotRing(store, ours.optimizer, keep=2)
    streams = [store.values, *(held.buffer for held in ours.optimizer.capture().streams.values())]  # type: ignore[attr-defined]
    floor = [torch.empty_like(stream) for stream in streams]
    ring.take(), ring.take()

    def copy() -> None:
        for target, stream in zip(floor, streams, strict=True):
            target.copy_(stream)

    def disk() -> None:
        """The same bytes without names and checksums, and the sync: what the disk takes."""
        with (folder / "bytes").open("wb", buffering=0) as file:
            for stream in streams:
                data = stream.view(torch.uint8).numpy().data
                for first in range(0, len(data), PIECE):
                    file.write(data[first : first + PIECE])
            os.fsync(file.fileno())

    def background() -> None:
        ring[-1].save(folder / "background.safetensors")

    def step() -> None:
        for param, grad in zip(ours.model.parameters(), grads, strict=True):
            param.grad = grad
        ours.optimizer.step()
        ours.optimizer.zero_grad()

    return in_turn(
        {
            "save": lambda: store.save(folder / "ours.safetensors", ours.optimizer),
            "torch_save_and_sync": lambda: torch_save(theirs, folder, sync=True),
            "torch_save": lambda: torch_save(theirs, folder, sync=False),
            "disk": disk,
            "copy": copy,
            "snapshot": ring.take,
            "snapshot_save_call": background,
            "step_while_saving": step,
            "wait": lambda: ring[-1].wait(),
            "step": step,
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.checkpoint", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", choices=list(CASES), action="append", help="repeatable; all if not given")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    options = parser.parse_args()
    rows = []
    for name in options.case or list(CASES):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = measure(workload(name), Path(folder), options.rounds)
        rows.append({"case": name, **row})
        print(f"{name}, AdamW, {workload(name).numel * 12 / 1e6:.0f} MB:")
        for what, ms in row.items():
            print(f"  {what:<22} {ms:10.3f} ms")
        synced, plain = (row[key] / row["save"] for key in ("torch_save_and_sync", "torch_save"))
        print(f"  torch.save / save: {synced:.2f} with fsync, {plain:.2f} without; ours always syncs")
        print(f"  save / the same bytes written and synced: {row['save'] / row['disk']:.2f}")
        print(f"  snapshot / copy of the same bytes: {row['snapshot'] / row['copy']:.2f}", flush=True)
    if options.out:
        facts = machine("cpu", " ".join(["python -m bench.checkpoint", *sys.argv[1:]]))
        options.out.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
