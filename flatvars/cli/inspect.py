"""Show what a checkpoint holds: names, shapes, dtypes, bytes, norms and counts of NaN.

Tensors are read once, piece by piece; with --header only the header is.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoint.opening import opened
from ..checkpoint.progress import size
from ..checkpoint.source import Source
from .choosing import add_key, add_select, chosen
from .show import as_json, printable, table, tree
from .stats import stats_of

NAME = "inspect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file, an index, or a folder")
    parser.add_argument("--header", action="store_true", help="read no tensor: no norms, no counts of NaN")
    add_select(parser)
    add_key(parser)
    parser.add_argument("--all", action="store_true", help="optimizer state and other tensors that are no values, too")


def run(options: argparse.Namespace) -> int:
    with opened(options.file, options.key) as source:
        content = describe(source, options)
        if options.json:
            as_json(content)
        else:
            _print(content, options)
    return 0


def describe(source: Source, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is shown, as data."""
    variables = source.description.variables if source.description is not None else {}
    shown = [pair for stream, keys in source.by_stream.items() if options.all or not stream for pair in keys.items()]
    names = set(chosen([*(name for name, _ in shown), *source.unread], options.select, source.name))
    keys = {key for name, key in shown if name in names}
    tensors: dict[str, Any] = {}
    for key, entry in source.entries.items():
        if key not in keys:
            continue
        row: dict[str, Any] = {"shape": list(entry.shape), "dtype": _name(entry.dtype), "bytes": entry.nbytes}
        if not options.header:
            row.update(stats_of(source, key).__dict__)
        if key in variables:
            row.update(trainable=variables[key]["trainable"], names=variables[key].get("names", [key]))
        tensors[key] = row
    for key, other in source.unread.items():
        if key in names:
            tensors[key] = {"shape": list(other.shape), "dtype": other.code, "bytes": other.stop - other.start}
            tensors[key]["read"] = False
    sizes = {
        stream or "values": sum(source.entries[key].nbytes for key in keys.values())
        for stream, keys in source.by_stream.items()
    }
    result = {"file": source.name, "format": "flatvars" if source.description is not None else "other"}
    return {**result, "tensors": tensors, "bytes": sizes, "training": _training(source)}


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _training(source: Source) -> dict[str, Any] | None:
    if source.description is None or source.description.training is None:
        return None
    training = source.description.training
    optimizers = [
        {
            "class": one["class"],
            "groups": [group["hyper"] for group in one["groups"]],
            "steps": max(one["steps"].values(), default=0),
            "skipped": one["skipped"],
        }
        for one in training["optimizers"]
    ]
    schedulers = [one["class"] for one in training["schedulers"]]
    return {"optimizers": optimizers, "schedulers": schedulers, "gradients": training["gradients"]}


def _numbers(row: dict[str, Any]) -> list[str]:
    if not row.get("read", True):
        return ["dtype not read", "", "", ""]
    largest = row["largest"]
    largest = f"{largest:.6g}" if isinstance(largest, float) else str(largest)
    return [f"{row['norm']:.6g}", largest, str(row["nan"]), str(row["infinite"])]


def _print(content: dict[str, Any], options: argparse.Namespace) -> None:
    names = list(content["tensors"])
    columns = ["name", "shape", "dtype", "bytes", *([] if options.header else ["norm", "largest", "NaN", "inf"])]
    rows: list[list[str]] = []
    styles: list[str | None] = []
    for line, index in tree(names):
        if index is None:
            rows.append([line, *[""] * (len(columns) - 1)])
            styles.append("bold")
            continue
        row = content["tensors"][names[index]]
        frozen = "" if row.get("trainable", True) else " (frozen)"
        cells = [line + frozen, "x".join(map(str, row["shape"])) or "()", row["dtype"], size(row["bytes"])]
        bad = bool(row.get("nan") or row.get("infinite"))
        if not options.header:
            cells += _numbers(row)
        rows.append(cells)
        styles.append("red" if bad else "dim" if frozen else None)
    table(columns, rows, styles)
    total = ", ".join(f"{name} {size(count)}" for name, count in content["bytes"].items())
    print(f"\n{len(names)} tensors; {total}")
    for one in (content["training"] or {}).get("optimizers", []):
        counts = f"{one['steps']} steps, {one['skipped']} skipped, {len(one['groups'])} param groups"
        print(f"{printable(one['class'])}: {counts}")
