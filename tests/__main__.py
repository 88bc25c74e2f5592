"""`python -m tests`: every lane, each in processes of its own. `python -m tests fast`: the usual loop, about a minute.

Triton decides when a kernel is decorated whether it is interpreted, so the interpreter needs a process with
TRITON_INTERPRET=1 and the compiler one without. On a GPU the library's lane runs the GPU tests, and those of the
kernels once more, compiled; elsewhere it says why it skips them.

The fast loop takes every test of the library and of the kernels, but no more than two cases of each. It leaves out
what is marked `slow` or `process`, frameworks and compiled code. All other arguments go to pytest.
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


def workers() -> list[str]:
    """Options that spread tests over all cores. A worker takes half of what another has left, so none is idle long."""
    if find_spec("xdist") is None:
        print("pytest-xdist is not installed: one process, about twice the time (pip install pytest-xdist)")
        return []
    return ["-n", str(min(cores(), MOST_WORKERS)), "--dist", "worksteal"]


def main(arguments: list[str]) -> int:
    """Runs the lanes.

    Returns:
        How many failed.
    """
    missing = [name for name in ("pytest", "hypothesis", "numpy", "torch", "safetensors") if find_spec(name) is None]
    if missing:
        print(f"the tests need {', '.join(missing)}: pip install -e '.[test]'", file=sys.stderr)
        return len(LANES)
    options = workers()
    environment = dict(os.environ)
    if arguments[:1] == ["fast"]:
        options, arguments = [*options, *FAST], arguments[1:]
        environment.setdefault("FLATVARS_SEQUENCES", "20")
    failed = []
    for lane, (paths, variables) in LANES.items():
        print(f"\n{lane} lane: {' '.join(paths)} with {variables}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *paths, *options, *arguments]
        if subprocess.run(command, cwd=ROOT, env={**environment, **variables}, check=False).returncode:
            failed.append(lane)
    print(f"\nfailed lanes: {', '.join(failed)}" if failed else "\nall lanes passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
