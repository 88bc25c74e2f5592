"""Compare two checkpoints: names, shapes, dtypes, values. Exit code 1 if they differ."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoint.opening import opened
from ..checkpoint.source import Source
from .choosing import add_select, chosen
from .show import as_json, table
from .stats import difference

NAME = "diff"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="a file, an index, or a folder")
    parser.add_argument("b", help="another")
    add_select(parser)
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest absolute difference that counts as equal")


def run(options: argparse.Namespace) -> int:
    with opened(options.a) as left, opened(options.b) as right:
        content = compare(left, right, options)
    if options.json:
        as_json(content)
    else:
        _print(content)
    return 0 if content["equal"] else 1


def compare(left: Source, right: Source, options: argparse.Namespace) -> dict[str, Any]:
    """What differs, as data."""
    keys = set(chosen([*left.entries, *right.entries], options.select, f"{left.name} and {right.name}"))
    a, b = (keys.intersection(source.entries) for source in (left, right))
    changed: dict[str, Any] = {}
    for key in (key for key in left.entries if key in a and key in b):
        one, other = left.entries[key], right.entries[key]
        if one.shape != other.shape:
            changed[key] = {"a": list(one.shape), "b": list(other.shape), "what": "shape"}
            continue
        equal, largest = difference(left, right, key, key)
        if one.dtype != other.dtype:
            changed[key] = {"a": str(one.dtype), "b": str(other.dtype), "what": "dtype", "difference": largest}
        elif not equal and not (options.tolerance and largest <= options.tolerance):
            changed[key] = {"what": "values", "difference": largest}
    only_a, only_b = ([key for key in s.entries if key in x - y] for s, x, y in ((left, a, b), (right, b, a)))
    equal = not (changed or only_a or only_b)
    return {"equal": equal, "compared": len(a & b), "changed": changed, "only_in_a": only_a, "only_in_b": only_b}


def _print(content: dict[str, Any]) -> None:
    rows = [[key, "only in a", "", "", ""] for key in content["only_in_a"]]
    rows += [[key, "only in b", "", "", ""] for key in content["only_in_b"]]
    for key, row in content["changed"].items():
        gap = f"{row['difference']:.3g}" if "difference" in row else ""
        rows.append([key, row["what"], str(row.get("a", "")), str(row.get("b", "")), gap])
    if rows:
        table(["name", "differs in", "a", "b", "largest"], rows)
        print()
    print(f"{content['compared']} tensors compared: {'equal' if content['equal'] else f'{len(rows)} differ'}")
