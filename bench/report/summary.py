"""Numbers about numbers: averages beside worst rows, what was lost, and the project's aims."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.harness.record import Row

# Ours that are held against others: gradients where autograd leaves them, and views of one buffer.
HELD = ("flatvars", "flatvars views")
# From here on a buffer is far larger than any cache, and launches cost nothing beside it.
LARGE = 10**8


@dataclass(frozen=True)
class Average:
    """Of one case and one of ours: the geometric mean of the ratios, and the worst row."""

    case: str
    ours: str
    against: str
    rows: int
    mean: float
    worst: float
    worst_on: str


def averages(rows: Sequence[Row]) -> list[Average]:
    """Ratios of ours against the best of the like peers, and against torch's fused, by case."""
    found = []
    for case in dict.fromkeys(row.case for row in rows):
        for ours in HELD:
            mine = [row for row in rows if (row.case, row.peer) == (case, ours)]
            for against, ratio in (("best peer", _best), ("torch fused", _fused)):
                pairs = [(value, row) for row in mine if (value := ratio(row)) is not None]
                if pairs:
                    worst, row = min(pairs, key=lambda pair: pair[0])
                    mean = math.exp(sum(math.log(value) for value, _ in pairs) / len(pairs))
                    found.append(Average(case, ours, against, len(pairs), mean, worst, cell_text(row)))
    return found


def _best(row: Row) -> float | None:
    return row.best_ratio


def _fused(row: Row) -> float | None:
    return row.fused_ratio


def compared(rows: Iterable[Row]) -> list[Row]:
    """Rows of ours that have a like peer."""
    return [row for row in rows if row.peer in HELD and row.best_ratio is not None]


def losses(rows: Iterable[Row]) -> list[Row]:
    """Rows of ours that a like peer beats in most rounds: first those beyond noise, the worst first."""
    lost = [row for row in compared(rows) if (row.best_ratio or 0.0) < 1.0]
    return sorted(lost, key=lambda row: (in_noise(row), row.best_ratio or 0.0))


def in_noise(row: Row) -> bool:
    """Whether a lost row was won in a quarter of the rounds or more, so that it may be none."""
    return row.best_high is not None and row.best_high > 1.0


LOST_COLUMNS = ("case", "on", "ours", "to", "ratio", "quartiles", "")


def lost_lines(rows: Iterable[Row]) -> list[list[str]]:
    """The table of `losses`."""
    return [
        [
            *(row.case, cell_text(row), row.peer, row.best_peer, f"{row.best_ratio:.2f}x"),
            quartiles(row.best_low, row.best_high),
            "within noise" if in_noise(row) else "",
        ]
        for row in losses(rows)
    ]


def quartiles(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def lost_text(rows: Sequence[Row]) -> str:
    """How many rows are lost, and how many of them cannot be told from noise."""
    lost = losses(rows)
    if not lost:
        return "No row is lost to a like peer."
    noise = sum(map(in_noise, lost))
    text = f"{len(lost)} of {len(compared(rows))} rows are lost to a like peer"
    if all(row.best_high is None for row in lost):
        return f"{text} (ratios of medians, as no common rounds are recorded)"
    return f"{text}, {noise} of them within noise: their upper quartile is above 1"


def cell_text(row: Row) -> str:
    return " ".join(part for part in (row.optimizer, row.on, "" if row.format == "float32" else row.format) if part)


@dataclass(frozen=True)
class Target:
    """An aim on an H200-class GPU.

    Attributes:
        measured: From the rows of a run; None where it has no such row.
    """

    text: str
    aim: str
    measured: Callable[[Sequence[Row]], float | None]
    reached: Callable[[float], bool]
    show: Callable[[float], str]


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _find(rows: Sequence[Row], case: str, wanted: Callable[[Row], bool], value: str) -> float | None:
    """The worst value of our rows of a case."""
    found = [getattr(r, value) for r in rows if r.peer == "flatvars" and r.case == case and wanted(r)]
    numbers = [number for number in found if number is not None]
    return min(numbers, default=None)


def _is_large(row: Row) -> bool:
    return row.elements >= LARGE and row.tensors == 1


TARGETS = (
    Target(
        "AdamW float32 step from 10^8 elements, of the copy's bandwidth (28 B a parameter)",
        ">= 92 %",
        lambda rows: _find(
            rows, "step", lambda r: _is_large(r) and r.optimizer == "adamw" and r.format == "float32", "of_copy"
        ),
        lambda value: value >= 0.92,
        _percent,
    ),
    Target(
        "accumulate with norm from 10^8 elements, of the copy's bandwidth",
        ">= 90 %",
        lambda rows: _find(rows, "accumulate", _is_large, "of_copy"),
        lambda value: value >= 0.90,
        _percent,
    ),
    Target(
        "first values from 10^8 elements, of the bandwidth of writing",
        ">= 85 %",
        lambda rows: _find(rows, "init", _is_large, "of_copy"),
        lambda value: value >= 0.85,
        _percent,
    ),
    Target(
        "tail at 10^9 parameters, against torch fused",
        ">= 1.15x",
        lambda rows: _find(rows, "tail", lambda r: _is_large(r) and r.elements >= 10**9, "fused_ratio"),
        lambda value: value >= 1.15,
        _times,
    ),
    Target(
        "tail of 1,000 tensors of 1,024, against torch fused",
        ">= 5x",
        lambda rows: _find(rows, "tail", lambda r: r.on == "1000x1024", "fused_ratio"),
        lambda value: value >= 5.0,
        _times,
    ),
    Target(
        "tail of 10,000 tensors of 256, against torch fused",
        ">= 20x",
        lambda rows: _find(rows, "tail", lambda r: r.on == "10000x256", "fused_ratio"),
        lambda value: value >= 20.0,
        _times,
    ),
    Target(
        "worst row of all, against the best like peer",
        ">= 1x",
        lambda rows: min((r.best_ratio for r in compared(rows) if r.best_ratio is not None), default=None),
        lambda value: value >= 1.0,
        _times,
    ),
    Target(
        "host time of the tail at 1,000 variables",
        "< 100 us",
        lambda rows: _find(rows, "tail", lambda r: r.on == "1000x1024", "host_ms"),
        lambda value: value < 0.1,
        lambda value: f"{value * 1e3:.0f} us",
    ),
)
