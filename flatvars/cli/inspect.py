"""Show what a checkpoint holds: names, shapes, dtypes, bytes, norms and counts of NaN.

Tensors are read once, piece by piece; with --header only the header is.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from ..checkpoint.opening import opened
from ..checkpoint.progress import size
from ..checkpoint.source import Source
from ..variables.selectors import as_select, fits_name
from .show import as_json, table, tree
from .stats import stats_of

NAME = "inspect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file, an index, or a folder")
    parser.add_argument("--header", action="store_true", help="read no tensor: no norms, no counts of NaN")
    parser.add_argument("--select", action="append", metavar="GLOB", help="only these names; may be repeated")
    parser.add_argument("--all", action="store_true", help="optimizer state and other tensors that are no values, too")


def run(options: argparse.Namespace) -> int:
    with opened(options.file) as source:
        content = describe(source, options)
        if options.json:
            as_json(content)
        else:
            _print(content, options)
    return 0


def describe(source: Source, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is shown, as data."""
    description = source.description
    chosen = partial(fits_name, selector=as_select(options.select))
    tensors: dict[str, Any] = {}
    streams: dict[str, int] = {}
    for key, entry in source.entries.items():
        stream, name = description.name_of(key) if description is not None else ("", key)
        if stream:
            streams[stream] = streams.get(stream, 0) + entry.nbytes
        if not chosen(name) or (stream and not options.all):
            continue
        row: dict[str, Any] = {"shape": list(entry.shape), "dtype": _name(entry.dtype), "bytes": entry.nbytes}
        if not options.header:
            row.update(stats_of(source, key).__dict__)
        if description is not None and not stream:
            about = description.variables.get(key, {})
            row["trainable"] = about.get("trainable", True)
            row["names"] = about.get("names", [key])
        tensors[key] = row
    values = sum(e.nbytes for e in source.entries.values()) - sum(streams.values())
    result = {"file": source.name, "format": "flatvars" if description is not None else "other"}
    return {**result, "tensors": tensors, "bytes": {"values": values, **streams}, "training": _training(source)}


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
        bad = not options.header and (row["nan"] or row["infinite"])
        if not options.header:
            cells += [f"{row['norm']:.6g}", f"{row['largest']:.6g}", str(row["nan"]), str(row["infinite"])]
        rows.append(cells)
        styles.append("red" if bad else "dim" if frozen else None)
    table(columns, rows, styles)
    total = ", ".join(f"{name} {size(count)}" for name, count in content["bytes"].items())
    print(f"\n{len(names)} tensors; {total}")
    for one in (content["training"] or {}).get("optimizers", []):
        print(f"{one['class']}: {one['steps']} steps, {one['skipped']} skipped, {len(one['groups'])} param groups")
