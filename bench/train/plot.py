"""The job's plot: both losses, how far they are apart, and the time of each step."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bench.train.loop import Record

COLORS = {"torch": "#d1762b", "flatvars": "#2b6cb0"}
LINES = {"torch": "-", "flatvars": "--"}


def draw(records: dict[str, Record], title: str, path: Path, unit: str = "nats per byte") -> str:
    """Draw the plot into ``path``, and return a sentence saying what was written, or why nothing was.

    Args:
        unit: Of the losses.
    """
    try:
        import matplotlib
    except ImportError:
        return "No plot was drawn: matplotlib is not installed (pip install matplotlib)."
    # A file is all that is wanted, on machines without a display too.
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((losses, differences), (optimizer, whole)) = pyplot.subplots(2, 2, figsize=(11, 7), sharex=True)
    for name, record in records.items():
        steps = range(1, len(record.losses) + 1)
        losses.plot(steps, record.losses, LINES[name], color=COLORS[name], linewidth=1, label=name)
    if len(records) == 2:
        pairs = zip(records["torch"].losses, records["flatvars"].losses, strict=True)
        # An exact match has no place on a logarithmic axis, and shows as a gap.
        apart = [abs(a - b) or float("nan") for a, b in pairs]
        differences.semilogy(range(1, len(apart) + 1), apart, ".", markersize=2, color="#555555")
    losses.legend()
    _draw_times(optimizer, {name: record.optimizer_ms for name, record in records.items()})
    _draw_times(whole, {name: record.step_ms for name, record in records.items()})
    _label(losses, "training loss", unit)
    _label(differences, "difference between the two losses", unit)
    _label(optimizer, "optimizer part of the step", "ms")
    _label(whole, "whole step", "ms")
    optimizer.set_xlabel("step")
    whole.set_xlabel("step")
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"Plot: {path}"


def _draw_times(axes, times: dict[str, list[float]]) -> None:
    """Every timed step as a dot, the medians as lines."""
    measured = {name: [value for value in values if value == value] for name, values in times.items()}
    for name, values in times.items():
        axes.plot(range(1, len(values) + 1), values, ".", markersize=2, color=COLORS[name])
        if measured[name]:
            axes.axhline(median(measured[name]), color=COLORS[name], linewidth=1, linestyle=LINES[name])
    everything = sorted(value for values in measured.values() for value in values)
    if everything:
        # One interrupted step would otherwise flatten all others onto the axis.
        axes.set_ylim(0, 1.3 * everything[int(0.98 * (len(everything) - 1))])


def _label(axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
