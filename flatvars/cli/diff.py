"""Compare two checkpoints: names, shapes, dtypes, values. Exit code 1 if they differ."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from ..checkpoint.header import TensorInfo, Unread
from ..checkpoint.opening import opened
from ..checkpoint.source import Source
from .choosing import add_key, add_select, chosen
from .show import as_json, table
from .stats import difference

NAME = "diff"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a file, an index, or a folder")
    parser.add_argument("b", help="another")
    add_select(parser)
    add_key(parser, of="both files")
    add_key(parser, "--key-a", "the first")
    add_key(parser, "--key-b", "the second")
    parser.add_argument(
        "--tolerance", type=_tolerance, help="largest absolute difference that counts as equal, dtypes that differ too"
    )


def _tolerance(text: str) -> float:
    """Raises ValueError, which is wrong usage, for what is no distance."""
    value = float(text)
    if not 0.0 <= value < math.inf:
        raise ValueError(text)
    return value


_tolerance.__name__ = "number >= 0"  # in argparse's words for what is none


def run(options: argparse.Namespace) -> int:
    with (
        opened(options.a, options.key_a or options.key) as left,
        opened(options.b, options.key_b or options.key) as right,
    ):
        content = compare(left, right, options)
    if options.json:
        as_json(content)
    else:
        _print(content)
    return 0 if content["equal"] else 1


def compare(left: Source, right: Source, options: argparse.Namespace) -> dict[str, Any]:
    """What differs, as data."""
    a, b = _tensors(left), _tensors(right)
    keys = set(chosen(dict.fromkeys([*a, *b]), options.select, f"{left.name} and {right.name}"))
    both = [key for key in a if key in keys and key in b]
    found = {key: _differences(left, right, key, a, b, options.tolerance) for key in both}
    changed = {key: row for key, row in found.items() if row is not None}
    only_a = [key for key in a if key in keys and key not in b]
    only_b = [key for key in b if key in keys and key not in a]
    equal = not (changed or only_a or only_b)
    return {"equal": equal, "compared": len(both), "changed": changed, "only_in_a": only_a, "only_in_b": only_b}


Listed = Mapping[str, TensorInfo | Unread]


def _tensors(source: Source) -> Listed:
    return {**source.entries, **source.unread}


def _differences(
    left: Source, right: Source, key: str, a: Listed, b: Listed, tolerance: float | None
) -> dict[str, Any] | None:
    one, other = a[key], b[key]
    if one.shape != other.shape:
        return {"a": list(one.shape), "b": list(other.shape), "what": "shape"}
    if isinstance(one, Unread) or isinstance(other, Unread):
        if _dtype(one) != _dtype(other):
            return {"a": _dtype(one), "b": _dtype(other), "what": "dtype"}
        return None if difference(left, right, key)[0] else {"what": "bytes"}
    equal, largest = difference(left, right, key)
    if tolerance is not None and largest <= tolerance:
        return None
    if one.dtype != other.dtype:
        return {"a": _dtype(one), "b": _dtype(other), "what": "dtype", "difference": largest}
    return None if equal else {"what": "values", "difference": largest}


def _dtype(entry: TensorInfo | Unread) -> str:
    return entry.code if isinstance(entry, Unread) else str(entry.dtype)


def _print(content: dict[str, Any]) -> None:
    rows = [[key, "only in a", "", "", ""] for key in content["only_in_a"]]
    rows += [[key, "only in b", "", "", ""] for key in content["only_in_b"]]
    for key, row in content["changed"].items():
        gap = row.get("difference", "")
        gap = f"{gap:.3g}" if isinstance(gap, float) else str(gap)
        rows.append([key, row["what"], str(row.get("a", "")), str(row.get("b", "")), gap])
    if rows:
        table(["name", "differs in", "a", "b", "largest"], rows)
        print()
    print(f"{content['compared']} tensors compared: {'equal' if content['equal'] else f'{len(rows)} differ'}")
