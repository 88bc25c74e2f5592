"""Runs checks on ranks over gloo; run as a script: python -m tests.distributed.launch FOLDER SIZES MODULE...

A check is a function `check_*(world: World)` of one of the modules; every rank calls it. What it raises is written down
by each rank, and the rank then stops, as nobody can say what its peers wait for.

The ranks are forked from this process when it has imported torch and compiled what they share: an import takes longer
than all checks. No thread runs before the fork.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

ROOT = Path(__file__).parents[2]
TIMEOUT = 60  # seconds that a rank waits for its peers


Check = Callable[["World"], None]


@dataclass
class World:
    """What a check is given.

    Attributes:
        rank, size: Of this process.
        mesh: Of all ranks.
        folder: For files, the same for all ranks.
    """

    rank: int
    size: int
    mesh: DeviceMesh
    folder: Path


SIZES = (2, 4)  # of worlds, for checks that do not say


def on(*sizes: int) -> Callable[[Check], Check]:
    """Says of a check that it is run in worlds of these sizes alone: others would show nothing more."""

    def note(check: Check) -> Check:
        check.sizes = sizes  # type: ignore[attr-defined]
        return check

    return note


def checks_of(module: Any, size: int) -> list[tuple[str, Check]]:
    """Those for a world of a size, in the order of the file."""
    found = [(name, value) for name, value in vars(module).items() if name.startswith("check_") and callable(value)]
    return [(name, check) for name, check in found if size in getattr(check, "sizes", SIZES)]


def run_rank(rank: int, size: int, folder: Path, modules: list[Any]) -> None:
    """Calls all checks, and writes what became of each: nothing, or a traceback."""
    outcomes: dict[str, str | None] = {}
    times: dict[str, float] = {}
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
        )
        world = World(rank, size, init_device_mesh("cpu", (size,)), folder)
        for module in modules:
            for name, check in checks_of(module, size):
                outcomes[name] = "did not end"
                torch.manual_seed(0)
                begin = time.perf_counter()
                check(world)
                outcomes[name] = None
                times[name] = time.perf_counter() - begin
        dist.destroy_process_group()
    except BaseException:
        outcomes[next((name for name, what in outcomes.items() if what), "start")] = traceback.format_exc()
    (folder / f"outcomes.{rank}").write_text(json.dumps(outcomes))
    (folder / f"times.{rank}").write_text(json.dumps(times))


def main(folder: Path, sizes: list[int], names: list[str]) -> None:
    """Forks the ranks of one world after the other, and waits for them."""
    torch.set_num_threads(1)
    modules = [importlib.import_module(f"tests.distributed.{name}") for name in names]
    for module in modules:
        module.warm()
    for size in sizes:
        room = folder / str(size)
        room.mkdir()
        children = []
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                run_rank(rank, size, room, modules)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)


def run(folder: Path, sizes: tuple[int, ...], *names: str) -> dict[str, str]:
    """What the checks of some modules raised on so many ranks, by name and rank; nothing, if all is well."""
    numbers = ",".join(map(str, sizes))
    command = [sys.executable, "-W", "ignore", "-m", "tests.distributed.launch", str(folder), numbers, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    modules = [importlib.import_module(f"tests.distributed.{name}") for name in names]
    failed = {}
    for size in sizes:
        wanted = sum(len(checks_of(module, size)) for module in modules)
        for rank in range(size):
            outcomes = json.loads((folder / str(size) / f"outcomes.{rank}").read_text())
            failed.update({f"{name} on rank {rank} of {size}": text for name, text in outcomes.items() if text})
            if len(outcomes) != wanted:
                failed[f"rank {rank} of {size}"] = f"{len(outcomes)} checks of {wanted} were begun"
    return failed


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")], sys.argv[3:])
