"""`python -m tests`: every lane, each in processes of its own. `python -m tests fast`: the usual loop, about a minute.

Triton decides when a kernel is decorated whether it is interpreted, so the interpreter needs a process with
TRITON_INTERPRET=1 and the compiler one without. On a GPU the library's lane runs the GPU tests, and those of the
kernels once more, compiled; elsewhere it says why it skips them.

The fast loop takes every test of the library and of the kernels, but no more than two cases of each. It leaves out
what is marked `slow` or `process`, frameworks and compiled code. All other arguments go to pytest.

`python -m tests machine --seed N --minutes M` runs random sequences that no lane runs; see `machine/explore.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
LANES = {
    "interpreter": (["tests/kernels"], {"TRITON_INTERPRET": "1"}),
    "library": (["tests"], {"TRITON_INTERPRET": "0"}),
}
LEFT_OUT = ("compile", "frameworks", "gpu")
FAST = ["-m", "not slow and not process", "--cases=2", "--hypothesis-profile=fast"]
FAST += [f"--ignore=tests/{folder}" for folder in LEFT_OUT]
# More of them would want more memory than machines with that many cores always have.
MOST_WORKERS = 8


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(workers: int) -> list[str]:
    """Options that spread a lane. A worker takes half of what another has left, so none is idle for long."""
    if workers < 2:
        return []
    if find_spec("xdist") is None:
        print("pytest-xdist is not installed: one process a lane (pip install pytest-xdist)")
        return []
    return ["-n", str(min(workers, MOST_WORKERS)), "--dist", "worksteal"]


def start(lane: str, options: list[str], output: int | None = None, **variables: str) -> subprocess.Popen[str]:
    paths, own = LANES[lane]
    command = [sys.executable, "-m", "pytest", "-q", *paths, *options]
    return subprocess.Popen(command, cwd=ROOT, env={**variables, **os.environ, **own}, stdout=output, text=True)


def announce(lane: str) -> None:
    paths, variables = LANES[lane]
    print(f"\n{lane} lane: {' '.join(paths)} with {variables}", flush=True)


def one_by_one(options: list[str]) -> list[str]:
    """Every lane on all cores; the names of those that failed."""
    options, failed = [*spread(cores()), *options], []
    for lane in LANES:
        announce(lane)
        failed += [lane] if start(lane, options).wait() else []
    return failed


def side_by_side(options: list[str]) -> list[str]:
    """All lanes at once, which imports torch less often; what they print comes lane by lane."""
    options, failed = [*spread(cores() // len(LANES)), *options], []
    started = {lane: start(lane, options, subprocess.PIPE, FLATVARS_SEQUENCES="20") for lane in LANES}
    for lane, process in started.items():
        announce(lane)
        print(process.communicate()[0], end="", flush=True)
        failed += [lane] if process.returncode else []
    return failed


def main(arguments: list[str]) -> int:
    """Runs the lanes.

    Returns:
        How many failed.
    """
    missing = [name for name in ("pytest", "hypothesis", "numpy", "torch", "safetensors") if find_spec(name) is None]
    if missing:
        print(f"the tests need {', '.join(missing)}: pip install -e '.[test]'", file=sys.stderr)
        return len(LANES)
    if arguments[:1] == ["machine"]:
        from tests.machine import explore  # a lane must not wait for torch

        return explore.main(arguments[1:])
    fast = arguments[:1] == ["fast"]
    failed = side_by_side([*FAST, *arguments[1:]]) if fast else one_by_one(arguments)
    print(f"\nfailed lanes: {', '.join(failed)}" if failed else "\nall lanes passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
