"""Launches on several threads: the same bits for any number of them, and nobody waits for one that does not come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import flatvars as fv
from flatvars.kernels.cpu import accumulate, step, team, threads
from flatvars.kernels.cpu.record import CHUNK, COUNT, DONE, FIRST, NEXT, Words, address_of_row, row_of
from flatvars.kernels.cpu.threads import Pool, callable_of
from tests.support.rig import Rig
from tests.support.rules import CASES
from tests.support.tolerances import assert_same_bits

SHAPES = [(5000,), (31,), (2048,), (0,), (9000,)]


@pytest.fixture
def with_threads() -> Iterator[Callable[..., None]]:
    """Sets how many threads every launch takes, however small it is, and whether they are torch's."""
    with patch.object(threads, "threads_for") as mock:

        def choose(count: int, are_torchs: bool = False) -> None:
            mock.return_value = count, are_torchs

        yield choose


def a_record(tiles: int = 0) -> Words:
    """Of a launch that reads nothing of it."""
    record = row_of([0] * (FIRST + 2))
    record[COUNT] = tiles
    return record


def everything() -> list[Tensor]:
    """What each kind of launch leaves, after work with masks, clipping and another dtype of gradients."""
    torch.manual_seed(0)
    case = CASES["adamw"]
    masks = [torch.rand(shape) < 0.8 for shape in SHAPES]
    rig = Rig(SHAPES, rule=case.rule, masks=masks, backend="cpu")
    for dtype in (torch.float32, torch.bfloat16):
        grads = rig.random_grads(dtype)
        rig.step(grads, [case.group], max_norm=0.5, skip=True)
        rig.accumulate(grads, 0.5, add=dtype == torch.bfloat16)
    norm = rig.norm.clone()
    made = [rig.plan.variable_norms(rig.values.stream, rig.plan.scattered(grads), order) for order in (1.0, 2.0, 3.0)]
    store = fv.VarStore()
    for i, shape in enumerate(SHAPES):
        store.add(f"v{i}", torch.zeros(shape))
    fv.init.apply_(store, {"v1": fv.init.trunc_normal(), "v2": fv.init.uniform(), "*": fv.init.normal()})
    return [*rig.snapshot(), norm, *made, store.values]


def test_the_same_bits_for_any_number_of_threads(with_threads: Callable[..., None]) -> None:
    with_threads(1)
    expected = everything()
    most = torch.get_num_threads()
    borrowed = [(most, True)] if most > 1 and team.is_there(most) else []
    for chosen in ((2, False), (3, False), (7, False), *borrowed):
        with_threads(*chosen)
        for actual, truth in zip(everything(), expected, strict=True):
            assert_same_bits(actual, truth)


def test_two_python_threads_step_two_stores(with_threads: Callable[..., None]) -> None:
    with_threads(3)
    expected = everything()
    results: list[list[Tensor]] = []

    def train(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        case = CASES["adamw"]
        rig = Rig([(20_000,), (31,)], rule=case.rule, backend="cpu", fill=False)
        for _ in range(30):
            grads = [torch.randn(shape, generator=generator) for shape in rig.segments.shapes]
            rig.step(grads, [case.group], max_norm=0.5)
        results.append(rig.snapshot())

    workers = [threading.Thread(target=train, args=(5,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for other in results[1:]:
        for actual, truth in zip(other, results[0], strict=True):
            assert_same_bits(actual, truth)
    for actual, truth in zip(everything(), expected, strict=True):
        assert_same_bits(actual, truth)


@pytest.mark.parametrize("code", [lambda: step.kernel(np.float32), lambda: accumulate.kernel(None, np.float32)])
def test_who_comes_too_late_looks_at_nothing(code: Callable[[], Any]) -> None:
    """A thread that wakes after its launch finds addresses of memory that may be gone: here, of none at all."""
    record = row_of([0] * FIRST + [5] * 48)  # tiles, their count: every address is one that no process may read
    record[NEXT], record[DONE] = 9, 9
    assert callable_of(code())(address_of_row(record), 0) == 0
    assert record[NEXT] > 9


def test_no_thread_is_waited_for_that_took_nothing(with_threads: Callable[..., None]) -> None:
    """The helpers of this pool sleep for ever: the launching thread does all of the work."""
    pool = Pool()
    with_threads(3)
    with patch.object(threads, "_work", lambda tasks: threading.Event().wait(5.0)):
        pool.launch(lambda address, leader: 1, a_record(), 1)
    assert pool._threads == 2


def test_no_more_threads_can_be_started(with_threads: Callable[..., None]) -> None:
    """As while the interpreter shuts down: the launch runs on the thread that asks for it."""
    pool, calls = Pool(), []
    with_threads(4)
    with patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        pool.launch(lambda address, leader: calls.append(leader) or 1, a_record(), 1)
    assert calls == [1]


def test_an_interrupt_waits_until_no_thread_writes_any_more(with_threads: Callable[..., None]) -> None:
    pool, answers = Pool(), [0, 0, 1]
    with_threads(2)

    class Interrupted(SimpleQueue):  # type: ignore[type-arg]
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            raise KeyboardInterrupt

    def launch(address: int, leader: int) -> int:
        return answers.pop(0) if leader else 0

    with (
        patch.object(pool, "_helpers", return_value=1),
        patch.object(threads, "SimpleQueue", Interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        pool.launch(launch, a_record(), 1)
    assert answers == []


def test_a_late_thread_looks_at_the_record_of_its_own_launch(with_threads: Callable[..., None]) -> None:
    """The next launch may be told other addresses by then, and other counters."""
    pool, record, seen = Pool(), a_record(), []
    with_threads(2)
    with patch.object(pool, "_helpers", return_value=1):
        pool.launch(lambda address, leader: seen.append(address) or 1, record, 1)
    task = pool._tasks.get()
    assert task.record is not record
    assert seen == [address_of_row(task.record)]


def test_the_chunk_follows_the_threads_of_each_launch(with_threads: Callable[..., None]) -> None:
    record = a_record(160)
    found = []
    for count in (1, 2, 1):
        with_threads(count)
        with patch.object(Pool, "_helpers", return_value=0):
            Pool().launch(lambda address, leader: 1, record, 1)
        found.append(record[CHUNK])
    assert found == [160, 10, 160]


@pytest.mark.parametrize(
    ("size", "torch_threads", "expected"), [(0, 8, 1), (10**5, 8, 1), (10**7, 2, 2), (10**9, 8, 8), (10**9, 1, 1)]
)
def test_the_number_of_threads_follows_the_work(size: int, torch_threads: int, expected: int) -> None:
    with (
        patch("torch.get_num_threads", return_value=torch_threads),
        patch.object(team, "is_there", return_value=False),
    ):
        assert threads.threads_for(size) == (expected, False)


@pytest.mark.parametrize(
    ("size", "worth", "expected"), [(10**6, True, False), (10**7, True, True), (10**7, False, False)]
)
def test_torchs_threads_are_for_what_is_worth_all_of_them(size: int, worth: bool, expected: bool) -> None:
    with (
        patch("torch.get_num_threads", return_value=2),
        patch.object(team, "is_there", return_value=True),
        patch.object(team, "is_worth", return_value=worth),
    ):
        assert threads.threads_for(size)[1] is expected
