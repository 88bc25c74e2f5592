"""Convert the values of a checkpoint: torch files to safetensors and back, and between floating dtypes."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch

from ..checkpoint.save import SHARD_SIZE, check_target, write
from ..checkpoint.source import Source, opened, verify
from ..checkpoint.staging import staged
from ..errors import DamagedFileError
from ..variables.selectors import as_select, fits_name
from .show import as_json, size

NAME = "convert"
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file, an index, or a folder")
    parser.add_argument("target", help="ends in .safetensors, .pt, .pth or .bin; or a folder that exists")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of floating tensors; as they are if not given")
    parser.add_argument("--select", action="append", metavar="GLOB", help="only these names; may be repeated")
    parser.add_argument("--shard-size", default=SHARD_SIZE, help=f"above which there are several files ({SHARD_SIZE})")
    parser.add_argument("--progress", action="store_true", help="show a bar when it takes long")


def run(options: argparse.Namespace) -> int:
    check_target(options.target)
    dtype = DTYPES.get(options.dtype)
    with opened(options.source) as source:
        keys = _values(source, options.select)
        damaged = verify(source, keys, lambda _: None)
        if damaged:
            raise DamagedFileError("; ".join(damaged))
        image = staged(source, keys, dtype)
        write(image, options.target, options.shard_size, options.progress)
    total = sum(record.span.numel * record.span.spec.dtype.itemsize for record in image.records)
    path = Path(options.target)
    content = {"source": source.name, "target": os.fspath(path), "tensors": len(keys), "bytes": total}
    if options.json:
        as_json(content)
    else:
        print(f"{len(keys)} tensors, {size(total)}, written to {path}")
    return 0


def _values(source: Source, select: list[str] | None) -> list[str]:
    chosen, description = partial(fits_name, selector=as_select(select)), source.description
    keys = [key for key in source.entries if description is None or not description.name_of(key)[0]]
    return [key for key in keys if chosen(key)]
