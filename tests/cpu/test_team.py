"""Torch's own threads: whether they are awake is told rightly, and no small launch waits for those that sleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from numba import types

from flatvars.kernels.cpu import team, threads
from flatvars.kernels.cpu.compile import native
from flatvars.kernels.cpu.record import FIRST, Words, row_of
from flatvars.kernels.cpu.threads import Pool, callable_of

pytestmark = pytest.mark.skipif(team._parallel() is None, reason="torch has no threads of GNU OpenMP here")

SMALL = 4_000_000
"""Bytes of a launch that two threads share if they are awake, and that is not worth waking them."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with patch.object(team, "_mine", team._Mine()):
        yield
    torch.set_num_threads(before)


def nothing() -> Any:
    """A launch's function that does nothing."""
    return callable_of(native(lambda record, leader: 1, types.int64(types.int64, types.int64)))


def record() -> Words:
    return row_of([0] * (FIRST + 2))


def launch() -> None:
    team.launch(nothing(), record(), 2)


def eventually(found: Callable[[], bool]) -> bool:
    """Other processes may have the processor: one look at a clock proves little."""
    return any(found() for _ in range(1000))


def test_nothing_is_known_before_the_first_launch() -> None:
    assert team._mine.clock is None
    assert team.is_awake()


def test_a_team_is_awake_behind_an_operation_and_asleep_behind_a_pause() -> None:
    launch()
    x = torch.ones(1 << 20)

    def behind_work() -> bool:
        torch.add(x, x, out=x)
        return team.is_awake()

    def behind_a_pause() -> bool:
        time.sleep(0.05)
        return not team.is_awake()

    assert team._mine.clock is not None
    for _ in range(3):
        assert eventually(behind_work)
        assert eventually(behind_a_pause)


def test_each_python_thread_asks_its_own_team() -> None:
    launch()
    clocks = [team._mine.clock]

    def other() -> None:
        clocks.append(team._mine.clock)
        launch()
        clocks.append(team._mine.clock)

    worker = threading.Thread(target=other)
    worker.start()
    worker.join()
    assert clocks[1] is None
    assert clocks[2] not in (None, clocks[0])
    assert team._mine.clock == clocks[0]


@pytest.mark.parametrize("awake", [False, True])
def test_who_sleeps_is_not_waited_for(awake: bool) -> None:
    with (
        patch.object(team, "is_awake", return_value=awake) as asked,
        patch.object(team, "launch") as borrowed,
        patch.object(team._mine, "launched", -team.JUST),
    ):
        for _ in range(3):
            Pool().launch(nothing(), record(), SMALL)
    assert (asked.call_count, borrowed.call_count) == ((3, 3) if awake else (3, 0))


def test_a_launch_just_behind_another_asks_nothing() -> None:
    launch()
    moment = team._mine.launched
    with (
        patch.object(team, "is_awake", return_value=False) as asked,
        patch.object(time, "perf_counter_ns", side_effect=[moment + team.JUST, moment + team.JUST + 1]),
    ):
        assert [team.is_worth(SMALL) for _ in range(2)] == [True, False]
    assert asked.call_count == 1


@pytest.mark.parametrize(
    ("gap", "sizes", "expected"),
    [
        (team.CLOSE - 1, [team.BYTES_WORTH_WAKING // 4] * 8, [False, False, False, True] * 2),
        (team.CLOSE, [team.BYTES_WORTH_WAKING // 4] * 8, [False] * 8),
        (team.CLOSE, [team.BYTES_WORTH_WAKING] * 3, [True] * 3),
    ],
)
def test_launches_close_behind_each_other_wake_the_team(gap: int, sizes: list[int], expected: list[bool]) -> None:
    """A loop of small steps would else run on one thread for ever; steps with pauses between them wait for nobody."""
    with (
        patch.object(team, "is_awake", return_value=False),
        patch.object(time, "perf_counter_ns", side_effect=[gap * (k + 1) for k in range(len(sizes))]),
        patch.object(team._mine, "launched", -10 * team.CLOSE),
    ):
        assert [team.is_worth(size) for size in sizes] == expected


def test_a_clock_that_is_gone_is_forgotten() -> None:
    launch()
    with patch.object(time, "clock_gettime_ns", side_effect=OSError):
        assert team.is_awake()
    assert team._mine.clock is None


def test_where_a_clock_cannot_be_had_the_team_is_taken_as_it_is() -> None:
    with patch.object(time, "pthread_getcpuclockid", side_effect=OSError):
        launch()
    assert team._mine.clock is None
    assert threads.threads_for(SMALL) == (2, True)


def test_an_interrupt_behind_the_tiles_leaves_no_launch_unfinished() -> None:
    pool, leaders = Pool(), []
    with (
        patch.object(threads, "threads_for", return_value=(2, True)),
        patch.object(team, "launch", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        pool.launch(lambda address, leader: leaders.append(leader) or 1, record(), SMALL)
    assert leaders == [1]


def test_no_clock_is_asked_for_where_no_other_thread_took_part() -> None:
    """As with OMP_DYNAMIC: of no thread, C libraries tell an error at best."""
    with (
        patch.object(team, "_parallel", lambda: lambda *arguments: None),
        patch.object(time, "pthread_getcpuclockid") as asked,
    ):
        launch()
    asked.assert_not_called()
    assert team._mine.clock is None
