"""Convert the values of a checkpoint: torch files to safetensors and back, and between floating dtypes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from ..checkpoint.capture import capture
from ..checkpoint.load import Loading, Options
from ..checkpoint.opening import opened
from ..checkpoint.progress import size
from ..checkpoint.save import SHARD_SIZE, check_target, write
from ..checkpoint.source import Source
from ..errors import CheckpointError
from ..gradients.attached import make_registry
from ..memory.spec import VarSpec
from ..variables.registry import Registry
from .choosing import add_key, add_select, chosen
from .show import as_json, printable

NAME = "convert"
FLOATING = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a file, an index, or a folder")
    parser.add_argument("target", help="ends in .safetensors, .pt, .pth or .bin; or a folder that exists")
    parser.add_argument("--dtype", choices=list(FLOATING), help="of floating tensors; as they are if not given")
    add_select(parser)
    add_key(parser)
    parser.add_argument("--shard-size", default=SHARD_SIZE, help=f"above which there are several files ({SHARD_SIZE})")
    parser.add_argument("--progress", action="store_true", help="show a bar when it takes long")


def run(options: argparse.Namespace) -> int:
    check_target(options.target, shard_size=options.shard_size)
    with opened(options.source, options.key) as source:
        names = chosen([*source.values(), *source.unread], options.select, source.name)
        unread = [f"{name!r} ({source.unread[name].code})" for name in names if name in source.unread]
        if unread:
            raise CheckpointError(f"{', '.join(unread[:5])} of {source.name} cannot be read; --select others")
        registry = _declared(source, names, FLOATING.get(options.dtype))
        loading = Loading(registry, source, Options(strict=False))
        loading.check()
        loading.apply()
        overflowed = _overflowed(registry, source)
    image = capture(registry)
    write(image, options.target, options.shard_size, options.progress)
    total = sum(table.nbytes for table in image.tables(2**63))
    path, count = Path(options.target), len(registry.variables)
    for name, elements in overflowed.items():
        words = f"{elements} elements of {printable(name)} are beyond {options.dtype}, and infinite now"
        print(f"flatvars {NAME}: {words}", file=sys.stderr)
    if options.json:
        sizes = {"tensors": count, "bytes": total, "overflowed": overflowed}
        as_json({"source": source.name, "target": os.fspath(path), **sizes})
    else:
        print(f"{count} tensors, {size(total)}, written to {path}")
    return 0


def _overflowed(registry: Registry, source: Source) -> dict[str, int]:
    """How many elements of a variable are infinite that are finite in the file, where there are any."""
    found = {}
    for variable in registry.variables:
        dtype, before = variable.dtype, source.entries[variable.name].dtype
        if not before.is_floating_point or dtype.is_complex or dtype == before:
            continue
        infinite = int(variable.value.isinf().sum())
        if infinite:  # and only then is the file read once more
            infinite -= sum(int(piece.double().isinf().sum()) for piece in source.pieces(variable.name))
        if infinite:
            found[variable.name] = infinite
    return found


def _declared(source: Source, keys: list[str], dtype: torch.dtype | None) -> Registry:
    """Variables as a file describes them, with room for their values alone."""
    registry = make_registry(torch.device("cpu"), "gather")
    described = source.description.variables if source.description is not None else {}
    for key in keys:
        entry, about = source.entries[key], described.get(key, {})
        floating = entry.dtype.is_floating_point
        spec = VarSpec(key, entry.shape, dtype if dtype is not None and floating else entry.dtype, has_room=False)
        param = torch.empty(entry.shape, dtype=spec.dtype, device="meta")
        param.requires_grad_(floating and about.get("trainable", True))
        variable = registry.declare(spec, param, about.get("names", [key]), about.get("group", 0))
        variable.id, variable.frozen = about.get("id", variable.id), about.get("frozen", False)
    return registry
