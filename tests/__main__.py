"""`python -m tests`: every lane, each in a process of its own.

Triton decides when a kernel is decorated whether it is interpreted, so the interpreter needs a process with
TRITON_INTERPRET=1 and the compiler one without. On a GPU the second lane runs the GPU tests, and those of the kernels
once more, compiled; elsewhere it says why it skips them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LANES = {
    "interpreter": (["tests/kernels"], {"TRITON_INTERPRET": "1"}),
    "library": (["tests"], {"TRITON_INTERPRET": "0"}),
}


def main() -> int:
    failed = []
    for lane, (paths, variables) in LANES.items():
        print(f"\n{lane} lane: {' '.join(paths)} with {variables}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *paths, *sys.argv[1:]]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False).returncode:
            failed.append(lane)
    print(f"\nfailed lanes: {', '.join(failed)}" if failed else "\nall lanes passed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
