"""Processes that die while they save: run by test_crash.py in a process of its own, which can fork.

python -m tests.checkpoint.crash {random,steps,rivals} FOLDER ROUNDS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import flatvars as fv

SHARDED = 200_000
"""Bytes of a shard: three of them."""


def make_store() -> fv.VarStore:
    store = fv.VarStore()
    for i in range(40):
        store.add(f"layer{i}.weight", torch.zeros(64, 50))
    return store


def set_version(store: fv.VarStore, version: int) -> None:
    for variable in store.variables().values():
        variable.value.fill_(version)


def version_of(store: fv.VarStore, path: Path) -> int:
    """What is saved at a path; fails if it is not one whole save."""
    set_version(store, -1)
    store.load(path)
    found = {int(x) for v in store.variables().values() for x in v.value.aminmax()}
    assert len(found) == 1, f"a mixture of saves: {sorted(found)}"
    return found.pop()


def save_version(store: fv.VarStore, path: Path, version: int) -> None:
    """Odd versions have shards, even ones do not."""
    set_version(store, version)
    store.save(path, shard_size=SHARDED if version % 2 else None)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def kill_at_random(folder: Path, rounds: int) -> None:
    """Children save version after version until they are killed; each time, what is there is whole and not old."""
    store, path, rng = make_store(), folder / "model.safetensors", random.Random(0)
    began = time.monotonic()
    for version in range(10):
        save_version(store, path, version)
    one = (time.monotonic() - began) / 10
    killed, last = 0, 9
    for _ in range(rounds):
        done_read, done_write = os.pipe()

        def work(last: int = last, out: int = done_write) -> None:
            for version in range(last + 1, last + 1000):
                save_version(store, path, version)
                os.write(out, version.to_bytes(4, "little"))

        child = forked(work)
        os.close(done_write)
        time.sleep(rng.uniform(0.0, 3 * one))
        os.kill(child, signal.SIGKILL)
        killed += os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        with os.fdopen(done_read, "rb") as file:
            finished = file.read()
        promised = int.from_bytes(finished[-4:], "little") if finished else last
        last = version_of(store, path)
        assert promised <= last <= promised + 1, f"save {promised} had returned, and {last} is there"
    assert killed == rounds, f"only {killed} of {rounds} children were killed while saving"
    finish(store, path, last + 1)
    print(f"{killed} killed, version {last}")


def finish(store: fv.VarStore, path: Path, version: int) -> None:
    """One more save leaves nothing of the dead behind."""
    save_version(store, path, version)
    assert version_of(store, path) == version
    names = {p.name for p in path.parent.iterdir()}
    index = path.with_name(path.name + ".index.json")
    expected = {path.name}
    if index.exists():
        expected = {index.name, *json.loads(index.read_text())["weight_map"].values()}
    assert names == expected, f"left behind: {names - expected}"


CALLS = ("open", "writev", "fsync", "replace", "close", "lseek")


def kill_at_each_call(folder: Path, rounds: int) -> None:
    """Children are killed before their first, second, third, ... call to the system; writes stop in the middle."""
    store, path = make_store(), folder / "model.safetensors"
    save_version(store, path, 0)
    last, kills = 0, 0
    for parity in (0, 1):
        for at in range(1, rounds):
            version = last + 1 + (last + 1 + parity) % 2

            def work(at: int = at, version: int = version) -> None:
                arm(at)
                save_version(store, path, version)

            status = os.waitpid(forked(work), 0)[1]
            found = version_of(store, path)
            assert found in (last, version), f"{found} is there, neither {last} nor {version}"
            last = found
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                assert found == version
                break
            kills += 1
        else:
            raise AssertionError(f"a save makes more than {rounds} calls")
    finish(store, path, last + 1)
    print(f"{kills} killed")


def arm(at: int) -> None:
    """This process dies at its `at`-th call; half of what that call would have written is written."""
    left = at

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "writev":
                    data = b"".join(args[1])  # type: ignore[arg-type]
                    os.write(args[0], data[: len(data) // 2])  # type: ignore[arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(os, name, call)

    for name in CALLS:
        wrap(name)


def rivals(folder: Path, rounds: int) -> None:
    """Four processes save to one path, and this one reads all the time: what it reads is always one save."""
    store, path = make_store(), folder / "model.safetensors"
    save_version(store, path, 0)

    def work(who: int) -> None:
        for i in range(rounds):
            save_version(store, path, 2 * (100 * who + i) + who % 2)

    children = [forked(lambda who=who: work(who)) for who in range(1, 5)]
    reads, alive = 0, set(children)
    while alive:
        version_of(store, path)
        reads += 1
        for child in list(alive):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                alive.discard(pid)
                assert os.waitstatus_to_exitcode(status) == 0
    finish(store, path, 2)
    print(f"{reads} reads")


if __name__ == "__main__":
    mode, where, count = sys.argv[1:]
    {"random": kill_at_random, "steps": kill_at_each_call, "rivals": rivals}[mode](Path(where), int(count))
