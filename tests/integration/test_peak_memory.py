"""How much memory adoption takes at its peak: resident bytes of a process of its own, measured by the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STATUS = Path("/proc/self/status")
LAYERS, WIDTH = 100, 1024
MODEL = LAYERS * WIDTH * WIDTH * 4  # 419 MB
# What the interpreter adds while the model is adopted, whatever its size: code pages of torch's operators that are
# touched for the first time, and modules.
INTERPRETER = 40_000_000

PROGRAM = f"""
import json, sys
import torch
from torch import nn
import flatvars as fv

def memory(key):
    lines = open({str(STATUS)!r}).read().splitlines()
    (line,) = [line for line in lines if line.startswith(key + ":")]
    return 1024 * int(line.split()[1])

def build():
    return nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS})))

def zero(module):
    for param in module.parameters(recurse=False):
        param.data.zero_()

fv.VarStore.from_module(nn.Linear(2, 2))
nn.init.kaiming_uniform_ = lambda tensor, *rest, **options: tensor.data.fill_(0.5)
start = memory("VmRSS")
device, options = {{"cpu": ("cpu", {{}}), "meta": ("meta", {{}}), "init": ("meta", {{"init": zero}})}}[sys.argv[1]]
with torch.device(device):
    model = build()
built = memory("VmRSS") - start
store = fv.VarStore.from_module(model, **options)
assert float(store.values[0]) == (0.0 if sys.argv[1] == "init" else 0.5)
print(json.dumps({{"built": built, "peak": memory("VmHWM") - start, "after": memory("VmRSS") - start}}))
"""


def measure(case: str) -> dict[str, int]:
    """Bytes above those before the model was built."""
    # Freed tensors go back to the system at once: what stays resident is what is held.
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, case], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not STATUS.exists(), reason="resident bytes are read from /proc, which Linux has"),
]


@pytest.mark.parametrize("case", ["meta", "init"])
def test_from_the_meta_device_the_peak_is_the_model_once(case: str) -> None:
    bytes_of = measure(case)
    assert bytes_of["built"] < INTERPRETER
    assert MODEL <= bytes_of["peak"] <= 1.05 * MODEL + INTERPRETER


def test_from_the_cpu_the_peak_is_the_model_twice() -> None:
    bytes_of = measure("cpu")
    assert bytes_of["built"] >= MODEL
    assert bytes_of["peak"] <= 2 * MODEL + INTERPRETER
    assert bytes_of["after"] <= MODEL + INTERPRETER
