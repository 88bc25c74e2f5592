"""One figure of all formats: what each costs in loss, beside its bytes, and how the losses run apart from float32's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SMOOTHED = 20


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws it as SVG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    # A file is all that is wanted, on machines without a display too.
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "flatvars"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.5))
    colors = pyplot.get_cmap("tab20").colors
    for i, row in enumerate(result["rows"]):
        ours = row["name"] in result["ours"]
        style = {"color": colors[i % 20], "marker": "o" if ours else "x", "label": row["name"]}
        left.plot([row["bytes"]], [row["loss"]], linestyle="none", **style)
    left.set_xlabel("bytes a parameter: values and state of AdamW, without gradients")
    left.set_ylabel(f"mean loss of the last {result['last']} steps")
    left.legend(fontsize=6, ncols=2)
    reference = smoothed(result["losses"]["float32"])
    for i, row in enumerate(result["rows"]):
        losses = smoothed(result["losses"][row["name"]])
        apart = [loss - base for loss, base in zip(losses, reference, strict=True)]
        line = "-" if row["name"] in result["ours"] else "--"
        right.plot(range(SMOOTHED, SMOOTHED + len(apart)), apart, line, color=colors[i % 20], linewidth=1)
    right.set_xlabel("step")
    right.set_ylabel(f"loss less that of float32, means of {SMOOTHED} steps")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    facts = result["machine"]
    figure.suptitle(f"{facts.get('gpu') or facts['processor']}, {facts['date']}, {result['steps']} steps", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def smoothed(losses: list[float]) -> list[float]:
    """Means of as many losses in a row."""
    return [sum(losses[i : i + SMOOTHED]) / SMOOTHED for i in range(max(len(losses) - SMOOTHED + 1, 0))]
