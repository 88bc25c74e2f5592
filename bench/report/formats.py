"""What the page shows of the main job in all storage formats: a table and a figure for each device."""

from __future__ import annotations

import json
from pathlib import Path

from bench.formats.table import table


def formats_part(folder: Path, base: Path) -> str:
    """The run of each device: of the larger model, if it was made.

    Args:
        folder: Of the results of `python -m bench.formats --out`.
        base: What links are relative to.
    """
    parts = []
    for device in ("cpu", "cuda"):
        made = [path for preset in ("small", "quick") if (path := folder / f"{preset}-{device}.json").exists()]
        if not made:
            continue
        path = made[0]
        figure = path.with_suffix(".svg").relative_to(base)
        image = f"![final loss against bytes a parameter, and losses less that of float32, by format]({figure})"
        parts += [table(json.loads(path.read_text())), image]
    return (
        "\n\n".join(parts) or "Not measured yet. The command is `python -m bench.formats --out bench/results/formats`."
    )
