"""`python -m bench.sweep`: the step, norm and accumulate kernels at other block sizes, warps and numbers of programs.

What `kernels/triton/launch.py` is tuned by. Every configuration is compiled, checked for the bits that the present one
gives, and timed beside a copy in the same rounds; one that does not compile, or gives other bits, is a row that says
so.
On host memory (`--device cpu`, with TRITON_INTERPRET=1) it runs the same code in Triton's interpreter, on a few
elements: times mean nothing there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

import flatvars as fv
from bench.harness.machine import machine
from bench.harness.timing import measure_round, middle
from flatvars.backend import use_backend
from flatvars.kernels.triton import launch, launches
from flatvars.kernels.triton.launch import Launch

TILES = [Launch(*numbers) for numbers in ((2048, 8, 4), (1024, 4, 2), (1024, 8, 4), (2048, 4, 2), (2048, 16, 8))]
TILES += [Launch(*numbers) for numbers in ((4096, 8, 4), (4096, 16, 8), (512, 2, 1), (512, 4, 2), (256, 1, 1))]
PROGRAMS = (2, 3, 4, 5, 6, 8, 12)
"""Programs of the accumulate kernel per multiprocessor, for 8 warps each."""
ROUNDS = {"cuda": 7, "cpu": 1}
LARGE = {"cuda": ["1x268435456", "1000x1024", "10000x64"], "cpu": ["2x2500"]}


@dataclass(frozen=True)
class Work:
    """What is timed, and the bytes it has to move.

    Attributes:
        name: Of the row.
        bytes: Modelled, an element.
    """

    name: str
    bytes: int
    dtype: torch.dtype = torch.float32
    state_dtype: torch.dtype | None = None


STEPS = [Work("adamw", 28), Work("lion", 20), Work("adamw bfloat16", 14, torch.bfloat16)]
STEPS += [Work("adamw bfloat16+float32", 22, torch.bfloat16, torch.float32)]
SUMS = [Work("norm", 4), Work("norm bfloat16", 2, torch.bfloat16), Work("accumulate", 8), Work("accumulate add", 12)]


@dataclass
class Row:
    """One configuration of one kernel. Milliseconds are the device's own; `of_copy` is of a copy of the same bytes."""

    work: str
    on: str
    block: int
    warps: int
    programs: int | None
    ms: float | None = None
    gb_per_s: float | None = None
    of_copy: float | None = None
    reason: str = ""


@contextmanager
def configured(tile: Launch, programs: int | None) -> Iterator[None]:
    """Plans made inside have this tile and these programs."""
    norm, other = programs or launch.NORM_PROGRAMS, programs or launch.OTHER_PROGRAMS
    tiles = patch.object(launches, "tile_for", lambda segments: tile)
    with tiles, patch.multiple(launch, NORM_PROGRAMS=norm, OTHER_PROGRAMS=other):
        yield


def prepared(work: Work, on: str, device: str) -> tuple[fv.VarStore, Callable[[], object]]:
    """A store of its own with gradients, and the call to time."""
    count, numel = map(int, on.split("x"))
    torch.manual_seed(0)
    # Created in pieces of one draw: what a configuration computes must not depend on it.
    values = torch.randn(numel, dtype=work.dtype, device=device)
    module = nn.ParameterList(nn.Parameter(values.clone()) for _ in range(count))
    store = fv.VarStore.from_module(module)
    for param in module:
        param.grad = values.flip(0)
    options = {"state_dtype": work.state_dtype} if work.state_dtype else {}
    if work.name.startswith(("adamw", "lion")):
        optimizer = (fv.optim.Lion if work.name == "lion" else fv.optim.AdamW)(store, lr=1e-3, **options)
        return store, optimizer.step
    if work.name.startswith("norm"):
        return store, store.grad_norm
    grads = [param.grad for param in module]

    def accumulate() -> object:
        if work.name == "accumulate":
            store.zero_grad()
        return store.accumulate(grads)

    accumulate()
    return store, accumulate


def result(work: Work, store: fv.VarStore, run: Callable[[], object]) -> torch.Tensor:
    """What must have the same bits in every configuration."""
    given = run()
    if work.name.startswith(("adamw", "lion")):
        return store.ravel()
    return store.grads.clone() if work.name.startswith("accumulate") else torch.as_tensor(given).clone()


def bandwidth(store: fv.VarStore, device: str) -> Callable[[], object]:
    """A copy of as many values."""
    there = torch.empty_like(store.values)
    return lambda: there.copy_(store.values)


def timed(work: Work, on: str, device: str, row: Row, expected: torch.Tensor | None) -> torch.Tensor:
    """Fills a row in.

    Raises:
        ValueError: other bits than expected.
    """
    store, run = prepared(work, on, device)
    found = result(work, store, run)
    if expected is not None and not torch.equal(found, expected):
        raise ValueError("gives other bits than the present configuration")
    copy = bandwidth(store, device)
    runs = 1 if device == "cpu" else 5
    pairs = [
        (measure_round(list, run, runs, device), measure_round(list, copy, runs, device)) for _ in range(ROUNDS[device])
    ]
    ms, _ = middle([mine.device for mine, _ in pairs])
    copied, _ = middle([other.device for _, other in pairs])
    moved = store.numel * work.bytes
    row.ms, row.gb_per_s = ms, moved / ms / 1e6
    row.of_copy = row.gb_per_s / (2 * store.values.nbytes / copied / 1e6)
    return found


def configurations(work: Work) -> list[tuple[Launch, int | None]]:
    """The present one first."""
    tiles: list[tuple[Launch, int | None]] = [(tile, None) for tile in TILES]
    return tiles if work in STEPS else [*tiles, *((TILES[0], programs) for programs in PROGRAMS)]


def sweep(works: Sequence[Work], on: Sequence[str], device: str, say: Callable[[Row], None]) -> list[Row]:
    """All rows."""
    rows = []
    for work in works:
        for where in on:
            expected: torch.Tensor | None = None
            for tile, programs in configurations(work):
                row = Row(work.name, where, tile.block, tile.warps, programs)
                with configured(tile, programs), use_backend("triton"):
                    try:
                        found = timed(work, where, device, row, expected)
                    except Exception as error:
                        row.reason = f"{type(error).__name__}: {error}"[:200]
                    else:
                        expected = found if expected is None else expected
                say(row)
                rows.append(row)
    return rows


def show(row: Row) -> None:
    programs = "" if row.programs is None else f", {row.programs} programs"
    number = row.reason if row.ms is None else f"{row.ms:9.4f} ms {row.gb_per_s:8.0f} GB/s {row.of_copy:6.1%} of a copy"
    print(f"{row.work:24} {row.on:14} {row.block:5}/{row.warps:<2}{programs:13} {number}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where the present configuration fails, or gives other bits than another."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", action="append", choices=[work.name for work in (*STEPS, *SUMS)], help="repeatable")
    parser.add_argument("--on", action="append", help="NxM, tensors x elements; repeatable")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    works = [work for work in (*STEPS, *SUMS) if not options.work or work.name in options.work]
    facts = machine(options.device, " ".join(["python -m bench.sweep", *arguments]))
    rows = sweep(works, options.on or LARGE[options.device], options.device, show)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
        options.out.write_text(f'{{"machine": {json.dumps(facts)},\n "rows": [\n  {lines}\n ]}}\n')
        print(f"written: {options.out}")
    return int(any(row.reason for row in rows if "bits" in row.reason or (row.block, row.warps) == (2048, 8)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
