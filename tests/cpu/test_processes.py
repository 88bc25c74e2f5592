"""What only a process of its own can show: forks, settings read once, what is imported, the end of a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatvars.kernels.cpu import team

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[2]

# Two threads a launch, and a step of two million elements, which is worth them. NumPy makes the numbers: a forked child
# that enters a parallel region of torch's own OpenMP hangs, with flatvars or without.
TRAIN = """
import os, sys, threading, zlib
import numpy as np, torch
torch.set_num_threads(2)
import flatvars as fv

N = 2_000_000

def prepare():
    store = fv.VarStore()
    store.add("v", torch.from_numpy(np.linspace(-1.0, 1.0, N, dtype=np.float32)))
    store["v"].param.grad = torch.from_numpy(np.linspace(-2.0, 1.0, N, dtype=np.float32))
    optimizer = fv.optim.SGD(store, lr=0.1, max_norm=1.0)
    optimizer.step()  # all memory is there now
    return store, optimizer

def train(made=None):
    store, optimizer = made or prepare()
    for _ in range(2):
        optimizer.step()
    return zlib.crc32(store.values.numpy().tobytes())

def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("flatvars-")]
"""

# Where torch's own threads cannot be had: on macOS, say.
OWN_THREADS = """
from flatvars.kernels.cpu import team
team.is_there = lambda threads: False
"""
AWAKE = """
from flatvars.kernels.cpu import team
team.is_awake = lambda: True
"""
BORROWED = team._parallel() is not None


def run(program: str, **environment: str) -> str:
    """Runs a program behind `TRAIN`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN + program],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip()


def test_importing_flatvars_imports_no_compiler() -> None:
    """Nor does a store; torch's optimizers import Triton themselves, but none of our kernels for it."""
    out = run("""
@fv.optim.rule()
def plain(p, g, state, hyper, step):
    return p - hyper.lr * g, state

store = fv.VarStore()
store.add("v", torch.zeros(3))
before = [name for name in ("numba", "triton", "llvmlite") if name in sys.modules]
optimizer = fv.optim.RuleOptimizer(store, fv.optim.rule()(plain.function), lr=0.1)
unused = "numba" in sys.modules
store["v"].param.grad = torch.ones(3)
fv.optim.SGD(store).step()
print(before, unused, "numba" in sys.modules, "flatvars.kernels.triton" in sys.modules)
""")
    assert out == "[] False True False"


def test_a_forked_child_trains_as_its_parent() -> None:
    """Threads do not survive a fork: the child makes its own. So do DataLoader's workers, and Hogwild's."""
    out = run(
        AWAKE
        + """
expected = train()
print(len(ours()))
made = prepare()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    found = train(made)
    os.write(write, repr((found, len(ours()))).encode())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert train() == expected
print(os.read(read, 100).decode() == repr((expected, 1)))
"""
    )
    assert out.split() == ["0" if BORROWED else "1", "True"]


def test_a_forked_child_trains_as_its_parent_on_threads_of_our_own() -> None:
    out = run(
        OWN_THREADS
        + """
expected = train()
made = prepare()
pid = os.fork()
if pid == 0:
    os._exit(0 if (train(made), len(ours())) == (expected, 1) else 1)
print(os.waitpid(pid, 0)[1], train() == expected, len(ours()))
"""
    )
    assert out == "0 True 1"


def test_a_child_forked_in_the_middle_of_a_launch_trains() -> None:
    """Whatever another thread was doing with the pool, the child starts with a new one."""
    out = run("""
expected = train()
stop = False
def background():
    while not stop:
        train()
worker = threading.Thread(target=background)
worker.start()
states = []
for _ in range(5):
    made = prepare()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if train(made) == expected else 1)
    states.append(os.waitpid(pid, 0)[1])
stop = True
worker.join()
print(states)
""")
    assert out == "[0, 0, 0, 0, 0]"


def test_one_thread_of_torch_is_one_of_ours() -> None:
    out = run(
        OWN_THREADS
        + """
torch.set_num_threads(1)
one, threads = train(), len(ours())
torch.set_num_threads(2)
print(one == train(), threads, len(ours()))
"""
    )
    assert out == "True 0 1"


@pytest.mark.skipif(not BORROWED, reason="torch has no threads of GNU OpenMP here")
def test_torchs_threads_leave_the_bits_of_our_own() -> None:
    """A team of another size than torch's is not asked for: GNU OpenMP would end threads of torch."""
    out = run("""
from flatvars.kernels.cpu import team
borrowed, launch = [], team.launch
team.launch = lambda *given: borrowed.append(given[2]) or launch(*given)
team.is_awake = lambda: True
found, sizes = [], []
for count in (2, 4, 3, 2):  # threads of a team end when it shrinks, and with them the clock that was asked
    torch.set_num_threads(count)
    found.append(train())
    sizes.append(sorted(set(borrowed)))
    borrowed.clear()
team.is_awake = lambda: False
found.append(train())
print(sizes, len(set(found)), len(ours()) > 0)
""")
    assert out == "[[2], [4], [3], [2]] 1 True"


@pytest.mark.skipif(not BORROWED, reason="torch has no threads of GNU OpenMP here")
def test_a_clock_of_a_thread_that_has_ended() -> None:
    """The next launch takes the team as it finds it, and its clock is another one."""
    out = run("""
from flatvars.kernels.cpu import team
from flatvars.kernels.cpu.record import row_of
from flatvars.kernels.cpu.threads import callable_of
from flatvars.kernels.cpu.compile import native
from numba import types
function = callable_of(native(lambda record, leader: 1, types.int64(types.int64, types.int64)))
import time
clocks = set()
for count in (2, 8):  # of seven members, most are none of the two threads that stay
    for _ in range(50):
        torch.set_num_threads(count)
        team.launch(function, row_of([0]), count)
        clocks.add(team._mine.clock)
team.launch(function, row_of([0]), 2)
time.sleep(0.1)
left = set()
for clock in clocks:
    team._mine.clock = clock
    if team.is_awake() and team._mine.clock is None:
        left.add(clock)
team.launch(function, row_of([0]), 2)
print(len(left) > 0, team._mine.clock not in left, team._mine.clock in clocks)
""")
    assert out == "True True True"


def test_nothing_of_numbas_but_its_compiler_is_needed() -> None:
    """No folder of compiled code can be had: not even root may make one below a file.
    On a machine without libgomp and without TBB its threading layers are neither loaded nor missed."""
    places = dict.fromkeys(("HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "FLATVARS_CACHE_DIR"), f"{os.devnull}/nothing")
    out = run(
        """
for name in ("omppool", "tbbpool", "workqueue"):
    sys.modules[f"numba.np.ufunc.{name}"] = None
trained = train()
from numba.np.ufunc import parallel
print(parallel._is_initialized, trained == train())
""",
        **places,
    )
    assert out == "False True"


def test_a_step_while_the_program_ends() -> None:
    """Python refuses new threads then."""
    out = run("""
import atexit
expected = []
atexit.register(lambda: print(train() == expected[0]))
torch.set_num_threads(1)
expected.append(train())
torch.set_num_threads(2)
""")
    assert out == "True"


def test_children_of_multiprocessing(tmp_path: Path) -> None:
    """As DataLoader and Hogwild start them."""
    program = tmp_path / "program.py"
    program.write_text(
        TRAIN
        + """
made = prepare()

def child(queue):
    queue.put(train(made))

if __name__ == "__main__":
    expected = train()
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=child, args=(queue,)) for _ in range(2)]
    for each in children:
        each.start()
    print([queue.get() == expected for _ in children])
    for each in children:
        each.join()
"""
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[True, True]", done.stderr[-2000:]
