"""`python -m bench`: the end of a training step against torch's, and every kernel against the copy (on a GPU).

python -m bench                  # on a GPU if there is one, else on the CPU
python -m bench --quick          # a minute
python -m bench --case init      # initialization against the loop of torch.nn.init calls
python -m bench --out bench/results
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import host, init
from bench.cases import CASES, QUICK, TAILS, gate, give_grads, make_grads
from bench.kernels import copy_case, kernel_cases
from bench.measure import time_in_turn


def machine(device: str) -> dict[str, str]:
    """What the numbers belong to."""
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    }
    if device != "cpu":
        import triton

        facts |= {"gpu": torch.cuda.get_device_name(), "triton": triton.__version__}
    return facts


def measure_tails(names: list[str], device: str, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        shapes = CASES[name]
        grads = make_grads(shapes, device)
        checked = gate(shapes, device)
        tails = {library: make(shapes, device) for library, make in TAILS.items()}
        prepare = [partial(give_grads, tail, grads) for tail in tails.values()]
        timings = dict(zip(tails, time_in_turn(prepare, [t.run for t in tails.values()], rounds, device), strict=True))
        row: dict[str, Any] = {"case": name, "norm_error": checked.norm_error, "difference": checked.difference}
        for library, timing in timings.items():
            row |= {f"{library}_ms": timing.total_ms, f"{library}_host_ms": timing.host_ms}
            row[f"{library}_spread"] = timing.spread
        row["ratio"] = row["torch_ms"] / row["flatvars_ms"]
        rows.append(row)
        print(
            f"{name:<14} flatvars {row['flatvars_ms']:9.3f} ms (host {row['flatvars_host_ms']:.3f})   "
            f"torch {row['torch_ms']:9.3f} ms (host {row['torch_host_ms']:.3f})   {row['ratio']:6.2f}x",
            flush=True,
        )
    return rows


def measure_kernels(numel: int, device: str, rounds: int) -> list[dict[str, Any]]:
    rows = []
    copy_speed = 0.0
    for case in [copy_case(numel, device), *kernel_cases(numel, device)]:
        (timing,) = time_in_turn([lambda: None], [case.run], rounds, device)
        speed = case.nbytes / timing.total_ms / 1e6
        copy_speed = copy_speed or speed
        rows.append({"kernel": case.name, "ms": timing.total_ms, "GB/s": speed, "of_copy": speed / copy_speed})
        print(
            f"{case.name:<24} {timing.total_ms:8.3f} ms {speed:8.0f} GB/s (modelled) {speed / copy_speed:6.1%} of copy"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", choices=[*CASES, "init"], action="append", help="repeatable; all if not given")
    parser.add_argument("--quick", action="store_true", help="small cases, fewer rounds")
    parser.add_argument("--out", type=Path, help="folder for a JSON file of the results")
    options = parser.parse_args()
    facts = machine(options.device)
    print("  ".join(f"{key}: {value}" for key, value in facts.items()))
    rounds = 5 if options.quick else 15
    names = options.case or [*(QUICK if options.quick else CASES), "init"]
    tails = [name for name in names if name != "init"]
    results: dict[str, Any] = {"machine": facts, "tails": measure_tails(tails, options.device, rounds)}
    if "init" in names:
        cases = init.QUICK_NAMES if options.quick else init.NAMES
        results["init"] = init.measure(list(cases), options.device, rounds)
    print("Host time of the parts of a step that walk the variables:")
    results["host"] = host.table()
    if options.device == "cpu":
        print("Kernels are measured on a GPU alone: on a CPU the torch backend runs.")
    else:
        results["kernels"] = measure_kernels(2**24 if options.quick else 2**28, options.device, rounds)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{facts['date']}-{options.device}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
