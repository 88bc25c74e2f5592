"""Ratios of the benchmark are those of rounds in turn: a machine that drifts changes medians, and pairs hardly."""

from __future__ import annotations

import statistics

import pytest

from bench.harness.pairs import Ratio, ratio
from bench.harness.record import Row, compare_peers
from bench.peers import OURS
from bench.report.summary import in_noise, losses, lost_text

OUR_MS, THEIR_MS = 1.0, 1.1


def row(peer: str, times: list[float | None], **other: object) -> Row:
    made = Row("step", "adamw", "1x64", "float32", 64, 1, 1, peer, like="float32", times=times)
    made.wall_ms = statistics.median(one for one in times if one is not None)
    for name, value in other.items():
        setattr(made, name, value)
    return made


def test_a_machine_that_slows_down_between_two_turns():
    """Half of fifteen rounds are slow; the first slow one began behind the peer's turn and before ours."""
    ours = [OUR_MS * (1.5 if i < 8 else 1.0) for i in range(15)]
    theirs = [THEIR_MS * (1.5 if 0 < i < 8 else 1.0) for i in range(15)]
    # The peer that is slower by a tenth has the better median, by a third.
    assert statistics.median(theirs) / statistics.median(ours) == pytest.approx(0.733, abs=1e-3)
    found = ratio(ours, theirs)
    assert (found.middle, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))
    rows = [row("flatvars", ours), row("torch fused", theirs)]
    compare_peers(rows, OURS)
    assert rows[0].fused_ratio == pytest.approx(1.1)
    assert losses(rows) == []


def test_a_peer_that_had_only_the_first_rounds():
    """A slow peer stops after some rounds, and the machine slows down behind them."""
    pace = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    ours, theirs = [OUR_MS * one for one in pace], [THEIR_MS * one for one in pace[:3]]
    assert statistics.median(theirs) / statistics.median(ours) == pytest.approx(0.55)
    assert ratio(ours, theirs).middle == pytest.approx(1.1)


def test_the_best_peer_has_the_lowest_ratio_and_not_the_luckiest_rounds():
    """The lucky one had only the fast rounds: its median is the best of all, and in each round it was the slowest."""
    pace = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    rows = [
        row("flatvars", pace),
        row("optimi", [1.3 * one if one == 1.0 else None for one in pace]),
        row("torch foreach", [0.9 * one for one in pace]),
    ]
    compare_peers(rows, OURS)
    assert rows[1].wall_ms < rows[2].wall_ms
    assert (rows[0].best_peer, rows[0].best_ratio) == ("torch foreach", pytest.approx(0.9))


def test_peers_of_different_batches_share_no_round():
    assert ratio([2.0, 2.0, None, None], [None, None, 3.0, 3.0]) == Ratio(1.5, None, None)
    assert ratio([2.0], [3.0]) == Ratio(1.5, None, None)
    assert ratio([2.0], []) is None
    assert ratio([], [3.0, 3.0]) is None


def test_quartiles_of_a_ratio():
    assert ratio([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) == Ratio(3.0, 2.0, 4.0)


def test_views_are_compared_with_views_and_the_rest_with_the_rest():
    rows = [
        row("flatvars", [2.0, 2.0]),
        row("flatvars views", [1.0, 1.0], views=True),
        row("torch fused", [3.0, 3.0]),
        row("contiguous-params", [1.5, 1.5], views=True),
    ]
    compare_peers(rows, OURS)
    assert [(r.best_peer, r.best_ratio, r.fused_ratio) for r in rows[:2]] == [
        ("torch fused", 1.5, 1.5),
        ("contiguous-params", 1.5, 3.0),
    ]


def test_lost_rows_are_told_from_noise_and_both_are_listed():
    clear, noisy = [0.8, 0.85, 0.9, 0.85, 0.8], [0.7, 0.9, 0.95, 1.2, 1.3]
    rows = []
    for on, theirs in (("1x2", noisy), ("1x4", clear), ("1x8", [1.1] * 5)):
        rows += [row("flatvars", [1.0] * 5, on=on), row("optimi", theirs, on=on)]
    compare_peers(rows, OURS)
    assert [(r.on, in_noise(r)) for r in losses(rows)] == [("1x4", False), ("1x2", True)]
    assert lost_text(rows).startswith("2 of 3 rows are lost to a like peer, 1 of them within noise")
