"""`python -m bench.first_gpu`: what to find out in the first half hour on a GPU, in this order, as one command.

python -m bench.first_gpu                       every part that has no result yet, until --minutes are over
python -m bench.first_gpu --list                the parts, and what is known of them
python -m bench.first_gpu --again kernels-1     this part anew; repeatable
python -m bench.first_gpu --dry                 all of it without a GPU, in Triton's interpreter: does each part run?

Parts are processes of their own, each within ten minutes; one that fails is a result, and the next begins. After each,
`first-gpu.json` in the folder of --out has all that is known, with card, versions and commit, so that a machine that
goes away costs one part. What `--seen` names (a folder of earlier results) is not run again. Tests use pytest-xdist
where it is installed; a profiler or sanitizer that is not there makes a part that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.harness.machine import ROOT

PYTHON = [sys.executable]
MOST_MINUTES = 10.0
STATE = "first-gpu.json"
TAIL = 6000
"""Characters of a part's output that are kept."""
DRY = {"TRITON_INTERPRET": "1"}
OK, FAILED, MISSING, STOPPED = "ok", "failed", "missing", "stopped"


@dataclass(frozen=True)
class Part:
    """A command, and what to run in its place without a GPU.

    Attributes:
        minutes: What it takes on a GPU, roughly: it is not begun with less left.
        needs: A program without which it is only noted as missing.
    """

    name: str
    subject: str
    command: list[str]
    dry: list[str]
    minutes: float
    needs: str = ""


@dataclass
class Outcome:
    """How a part ended: "ok", "failed", "missing" a program, or "stopped" at its limit."""

    status: str
    seconds: float
    command: str
    tail: str


def pytest_on(*arguments: str) -> list[str]:
    workers = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"] if find_spec("xdist") else []
    return [*PYTHON, "-m", "pytest", "-q", *workers, *arguments]


def bench(out: Path, name: str, *arguments: str) -> list[str]:
    return [*PYTHON, "-m", "bench", "--device", "cuda", "--out", str(out), "--name", name, *arguments]


def parts(out: Path) -> list[Part]:
    """In the order of what is known least."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "kernels").glob("test_*.py"))
    few = ["tests/kernels/test_words.py", "tests/kernels/test_norm.py", "tests/kernels/test_step_counts.py"]
    large, two = ["--on", "1x268435456"], ["--peer", "flatvars", "--peer", "torch fused"]
    small = [option for on in ("10000x64", "10000x256", "1000x1024") for option in ("--on", on)]
    kernels = [option for case in ("step", "norm", "accumulate", "accumulate-add") for option in ("--case", case)]
    tiny = [*PYTHON, "-m", "bench", "--device", "cpu", "--out", str(out), "--peer", "flatvars", "--on", "10x100"]
    sweep = [*PYTHON, "-m", "bench.sweep"]
    profiled = [*sweep, "--work", "adamw", "--work", "norm", *large]
    dry_sweep = [*sweep, "--device", "cpu", "--work", "norm"]
    # What is new on a machine without a GPU is whether a part runs: a case of each test will do.
    dry_tests = [[*PYTHON, "-m", "pytest", "-q", "--cases=1", file] for file in few]
    skipped = ["env", "TRITON_INTERPRET=0", *PYTHON, "-m", "pytest", "-q", "tests/gpu"]
    metrics = "dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active,"
    metrics += "smsp__issue_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread"
    ncu = ["ncu", "--clock-control", "none", "--metrics", metrics, "--launch-count", "60", *profiled]
    check = ["compute-sanitizer", "--error-exitcode", "9", *PYTHON, "-m", "pytest", "-x", "-q", *few]
    module = [*PYTHON, "-m", "bench.first_gpu"]
    return [
        Part("machine", "compiler, headers, versions, copy bandwidth", [*module, "machine"], [*module, "machine"], 1),
        Part("sanitizer", "memory errors of a few launches", check, dry_tests[0], 4, "compute-sanitizer"),
        Part("kernels-1", "tests of the kernels, compiled", pytest_on(*files[0::2]), dry_tests[1], 5),
        Part("kernels-2", "the other half of them", pytest_on(*files[1::2]), dry_tests[2], 5),
        Part("gpu", "what only a GPU can show", pytest_on("tests/gpu", "-m", "not slow"), skipped, 4),
        Part("large", "kernels at 2^28 elements", bench(out, "large", *kernels, *large, *two), tiny, 4),
        Part("tail", "many small tensors", bench(out, "tail", "--case", "tail", *small, *two), tiny, 3),
        Part("sweep", "blocks, warps, programs", [*sweep, "--out", str(out / "sweep.json")], dry_sweep, 8),
        Part("profile", "memory, warps and issue slots", ncu, dry_sweep, 4, "ncu"),
        Part("gpu-slow", "the slow ones", pytest_on("tests/gpu", "-m", "slow"), skipped, 5),
        Part("quick", "every kernel beside every peer", bench(out, "quick", "--quick"), [*tiny, "--case", "norm"], 9),
    ]


def run(part: Part, dry: bool) -> Outcome:
    """One part, within ten minutes; its output is shown as it comes."""
    command = part.dry if dry else part.command
    if part.needs and not dry and shutil.which(part.needs) is None:
        return Outcome(MISSING, 0.0, " ".join(command), f"{part.needs} is not on the PATH")
    start, text = time.monotonic(), ""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(DRY if dry else {"TRITON_INTERPRET": "0"})}
    with subprocess.Popen(
        ["timeout", "--kill-after=10", f"{MOST_MINUTES * 60 - 15:.0f}", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            text = (text + line)[-TAIL:]
        code = process.wait()
    status = OK if code == 0 else STOPPED if code in (124, 137) else FAILED
    return Outcome(status, round(time.monotonic() - start, 1), " ".join(command), text)


def known(folders: Sequence[Path]) -> dict[str, Outcome]:
    """What earlier runs found; later folders count more."""
    found: dict[str, Outcome] = {}
    for folder in folders:
        if (folder / STATE).exists():
            read = json.loads((folder / STATE).read_text())["parts"]
            found.update({name: Outcome(**one) for name, one in read.items()})
    return found


def keep(out: Path, outcomes: dict[str, Outcome]) -> None:
    """Whole or not at all."""
    draft = out / f"{STATE}.draft"
    draft.write_text(json.dumps({"parts": {name: asdict(one) for name, one in outcomes.items()}}, indent=1) + "\n")
    draft.replace(out / STATE)


def report(all_parts: Sequence[Part], outcomes: dict[str, Outcome]) -> None:
    for part in all_parts:
        one = outcomes.get(part.name)
        text = "to do" if one is None else f"{one.status}, {one.seconds:.0f} s"
        print(f"{part.name:10} {part.subject:45} {text}")


def describe_machine() -> int:
    """The part "machine". Returns the exit status: 1 where Triton cannot compile its launcher."""
    import torch

    from bench.harness.machine import machine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = machine(device, "python -m bench.first_gpu machine")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    facts |= {"compiler": str(compiler), "Python.h": str(header) if header.exists() else "missing"}
    if device == "cuda":
        facts["copy"] = f"{copy_bandwidth():.0f} GB/s of 1 GiB of float32"
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    return int(compiler is None or not header.exists())


def copy_bandwidth() -> float:
    """GB/s, bytes read and written."""
    import torch

    from bench.harness.timing import measure_round, middle

    source = torch.ones(2**28, device="cuda")
    target = torch.empty_like(source)
    rounds = [measure_round(list, lambda: target.copy_(source), 5, "cuda") for _ in range(7)]
    return 2 * source.nbytes / middle([one.device for one in rounds])[0] / 1e6


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where a part failed or was stopped, 2 where parts are left to do."""
    if list(arguments) == ["machine"]:
        return describe_machine()
    parser = argparse.ArgumentParser(
        prog="python -m bench.first_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "first-gpu", help="folder of results")
    parser.add_argument("--seen", type=Path, action="append", default=[], help="folder of earlier results; repeatable")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no part that would take longer than is left")
    parser.add_argument("--again", action="append", default=[], help="a part to run anew; repeatable")
    parser.add_argument("--list", action="store_true", help="only say what is known")
    parser.add_argument("--dry", action="store_true", help="in the interpreter, without a GPU")
    options = parser.parse_args(arguments)
    out, end = options.out.resolve(), time.monotonic() + options.minutes * 60
    todo = parts(out)
    if unknown := set(options.again) - {part.name for part in todo}:
        parser.error(f"no part is called {sorted(unknown)}; there are {[part.name for part in todo]}")
    if not options.dry and not options.list and not has_gpu():
        parser.error("torch.cuda.is_available() is false: --dry runs every part in the interpreter")
    outcomes = {name: one for name, one in known([*options.seen, out]).items() if name not in options.again}
    if options.list:
        report(todo, outcomes)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    for part in todo:
        if part.name in outcomes or (not options.dry and time.monotonic() + part.minutes * 60 > end):
            continue
        print(f"\n{part.name}: {part.subject}", flush=True)
        outcomes[part.name] = run(part, options.dry)
        keep(out, outcomes)
    print()
    report(todo, outcomes)
    if any(one.status in (FAILED, STOPPED) for one in outcomes.values()):
        return 1
    return 2 * any(part.name not in outcomes for part in todo)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
