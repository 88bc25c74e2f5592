"""Check a checkpoint: header, sizes, checksums. Exit code 1 if it is damaged."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoint.opening import opened
from ..checkpoint.progress import Progress, size
from ..errors import DamagedFileError
from .show import as_json

NAME = "verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file, an index, or a folder")
    parser.add_argument("--progress", action="store_true", help="show a bar when it takes long")


def run(options: argparse.Namespace) -> int:
    content = check(options.file, options.progress)
    if options.json:
        as_json(content)
    elif content["problems"]:
        print("\n".join(content["problems"]))
    else:
        unchecked = content["tensors"] - content["checksums"]
        note = f"; {unchecked} have no checksum, only their sizes were checked" if unchecked else ""
        print(f"{options.file}: {content['tensors']} tensors, {size(content['bytes'])}, sound{note}")
    return 1 if content["problems"] else 0


def check(file: str, progress: bool) -> dict[str, Any]:
    """What is wrong with a file, as data."""
    try:
        with opened(file) as source, Progress("verifying", progress) as bar:
            keys = [key for key in source.entries if source.crc32(key) is not None]
            bar.start(sum(source.entries[key].nbytes for key in keys))
            problems = source.damaged(keys, bar.advance)
            total = sum(entry.nbytes for entry in source.entries.values())
            sizes = {"tensors": len(source.entries), "checksums": len(keys), "bytes": total}
            return {"file": file, "sound": not problems, "problems": problems, **sizes}
    except DamagedFileError as error:
        return {"file": file, "sound": False, "problems": [str(error)], "tensors": 0, "checksums": 0, "bytes": 0}
