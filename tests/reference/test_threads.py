"""Threads: declaring, looking up and carving at once; nothing is lost, nothing overlaps, nothing hangs."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

import flatvars as fv
from flatvars import init

THREADS = 16
PER_THREAD = 63  # 1,008 variables


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change places every few bytecodes."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run(work: Callable[[int], None]) -> None:
    """Runs `work(thread)` in all threads at once, and raises what any of them raised."""
    failures: list[BaseException] = []
    ready = threading.Barrier(THREADS)

    def guarded(number: int) -> None:
        ready.wait()
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    if failures:
        raise failures[0]


@pytest.mark.row("T-VS-23")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_declarations_lookups_and_carves_from_many_threads(hurried: None, seed: int) -> None:
    store = fv.VarStore(seed=seed)
    made: dict[str, torch.Tensor] = {}

    def work(number: int) -> None:
        schedule = random.Random(1000 * seed + number)
        for i in range(PER_THREAD):
            path = store.root() / f"thread{number}" / i
            choice = schedule.random()
            if choice < 0.6:
                made[path.name("w")] = path.randn_standard("w", (schedule.randrange(1, 40),))
            elif choice < 0.8:
                made[path.name("w")] = path.zeros_no_train("w", (schedule.randrange(40),))
            else:
                made[path.name("w")] = path.entry("w").or_ones((3, 4))
            if schedule.random() < 0.05:
                assert store.values_of(torch.float32) is not None  # carves what was declared
            if schedule.random() < 0.05:
                assert store[path.name("w")].param is made[path.name("w")]
            if schedule.random() < 0.02:
                store.freeze(path.name("w"))

    run(work)
    assert len(store) == len(made) == THREADS * PER_THREAD
    assert len({v.id for v in store.variables().values()}) == len(made)
    assert [v.index for v in store.variables().values()] == list(range(len(made)))
    store.check()
    for name, tensor in made.items():
        assert store[name].param is tensor
    assert sum(v.initializer == init.normal() for v in store.variables().values()) > 400
    twin = fv.VarStore(seed=seed)
    for variable in store.variables().values():
        if variable.initializer == init.normal():
            *parts, leaf = variable.name.split(".")
            path = twin.root()
            for part in parts:
                path = path / part
            assert torch.equal(path.randn_standard(leaf, variable.shape), variable.value)


@pytest.mark.row("T-VS-23", "T-E-01", "B-02")
def test_one_name_asked_for_by_all_threads_is_one_variable(hurried: None) -> None:
    store = fv.VarStore()
    got: list[torch.Tensor] = []
    run(lambda number: got.append(store.root().entry("shared").or_randn_standard((50,))))
    assert len(store) == 1
    assert all(tensor is got[0] for tensor in got)
    assert got[0].count_nonzero() == 50


@pytest.mark.row("T-P-08", "T-VS-23")
def test_duplicate_names_from_all_threads_are_all_kept(hurried: None) -> None:
    store = fv.VarStore()
    run(lambda number: [store.root().zeros("w", (2,)) for _ in range(10)])  # type: ignore[arg-type, return-value]
    assert len(store) == 10 * THREADS
    assert len(set(store)) == 10 * THREADS
    store.check()


def test_modules_are_adopted_from_many_threads(hurried: None) -> None:
    store = fv.VarStore()
    modules = [torch.nn.Linear(3, 4) for _ in range(THREADS)]
    before = [module.weight.detach().clone() for module in modules]
    run(lambda number: store.add_module(modules[number], f"m{number}"))
    assert len(store) == 2 * THREADS
    for module, weight in zip(modules, before, strict=True):
        assert torch.equal(module.weight, weight)
    store.check()
