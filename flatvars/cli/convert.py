"""Convert the values of a checkpoint: torch files to safetensors and back, and between floating dtypes."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import torch

from ..checkpoint.converting import Converted
from ..checkpoint.opening import opened
from ..checkpoint.progress import size
from ..checkpoint.save import SHARD_SIZE, check_target, write
from ..errors import DamagedFileError
from ..variables.selectors import as_select, fits_name
from .show import as_json

NAME = "convert"
FLOATING = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file, an index, or a folder")
    parser.add_argument("target", help="ends in .safetensors, .pt, .pth or .bin; or a folder that exists")
    parser.add_argument("--dtype", choices=list(FLOATING), help="of floating tensors; as they are if not given")
    parser.add_argument("--select", action="append", metavar="GLOB", help="only these names; may be repeated")
    parser.add_argument("--shard-size", default=SHARD_SIZE, help=f"above which there are several files ({SHARD_SIZE})")
    parser.add_argument("--progress", action="store_true", help="show a bar when it takes long")


def run(options: argparse.Namespace) -> int:
    check_target(options.target)
    chosen = partial(fits_name, selector=as_select(options.select))
    with opened(options.source) as source:
        keys = [key for key in source.values() if chosen(key)]
        damaged = source.damaged(keys)
        if damaged:
            raise DamagedFileError("; ".join(damaged))
        content = Converted(source, keys, FLOATING.get(options.dtype))
        write(content, options.target, options.shard_size, options.progress)
        total = sum(table.nbytes for table in content.tables(2**63))
    path = Path(options.target)
    result = {"source": source.name, "target": os.fspath(path), "tensors": len(keys), "bytes": total}
    if options.json:
        as_json(result)
    else:
        print(f"{len(keys)} tensors, {size(total)}, written to {path}")
    return 0
