"""Tables and trees on a terminal: by rich where it is installed and the output is a terminal, else plain text."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

MAX_DEPTH = 50
"""Levels of a tree: names with more dots end in a longer line."""


def as_json(content: Any) -> None:
    """One JSON object; NaN and infinity become strings."""
    print(json.dumps(_finite(content), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None] | None = None) -> None:
    """Prints rows under their columns; the first column is to the left, numbers to the right.

    Args:
        styles: Of each row, for a terminal with colors.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and _rich_table(columns, rows, styles or [None] * len(rows)):
        return
    # What stands last in a row that ends early, such as a reason why there are no numbers, may be as long as it is.
    last = len(columns) - 1
    fitting = [row for row in rows if row[last] or not any(row[1:])]
    widths = [max(len(row[i]) for row in [columns, *(fitting if i else rows)]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Names of a file that nobody vouches for move no cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None]) -> bool:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        return False
    result = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row, style in zip(rows, styles, strict=True):
        result.add_row(*map(escape, row), style=style)
    Console().print(result)
    return True


def tree(names: Sequence[str]) -> list[tuple[str, int | None]]:
    """Dotted names as the lines of a tree: (line, index of the name), None for lines of inner nodes.

    A node with one child is written on its child's line.
    """
    root: dict[str, Any] = {}
    for i, name in enumerate(names):
        node = root
        *path, leaf = name.split(".", MAX_DEPTH)
        for part in path:
            node = node.setdefault(f"{part}.", {})
        node[leaf] = i
    lines: list[tuple[str, int | None]] = []
    _walk(root, 0, lines)
    return lines


def _walk(node: dict[str, Any], depth: int, lines: list[tuple[str, int | None]]) -> None:
    for label, child in node.items():
        while isinstance(child, dict) and len(child) == 1:
            ((more, child),) = child.items()
            label += more
        if isinstance(child, dict):
            lines.append(("  " * depth + label.rstrip("."), None))
            _walk(child, depth + 1, lines)
        else:
            lines.append(("  " * depth + label, child))
