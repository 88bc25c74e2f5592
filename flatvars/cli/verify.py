"""Check a checkpoint: header, sizes, checksums. Exit code 1 if it is damaged."""

from __future__ import annotations

import argparse
from typing import Any

from ..checkpoint.opening import opened
from ..checkpoint.progress import Progress, size
from ..errors import DamagedFileError
from .choosing import add_key
from .show import as_json, printable

NAME = "verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file, an index, or a folder")
    add_key(parser)
    parser.add_argument("--progress", action="store_true", help="show a bar when it takes long")


def run(options: argparse.Namespace) -> int:
    content = check(options.file, options.key, options.progress)
    if options.json:
        as_json(content)
    elif content["problems"]:
        print("\n".join(map(printable, content["problems"])))
    else:
        unchecked = content["tensors"] - content["checksums"]
        note = f"; {unchecked} have no checksum, only their sizes were checked" if unchecked else ""
        print(f"{options.file}: {content['tensors']} tensors, {size(content['bytes'])}, sound{note}")
        for name, code in content["unread"].items():
            print(f"{printable(name)} is {printable(code)}, which is not read here")
    return 1 if content["problems"] else 0


def check(file: str, key: list[str] | None, progress: bool) -> dict[str, Any]:
    """What is wrong with a file, as data."""
    try:
        with opened(file, key) as source, Progress("verifying", progress) as bar:
            keys = [key for key in source.entries if source.crc32(key) is not None]
            bar.start(sum(source.entries[key].nbytes for key in keys))
            problems = source.damaged(keys, bar.advance)
            infos = [source.info(key) for key in (*source.entries, *source.unread)]
            sizes = {"tensors": len(infos), "checksums": len(keys), "bytes": sum(info.nbytes for info in infos)}
            unread = {key: entry.code for key, entry in source.unread.items()}
            return {"file": file, "sound": not problems, "problems": problems, **sizes, "unread": unread}
    except DamagedFileError as error:
        sizes = {"tensors": 0, "checksums": 0, "bytes": 0}
        return {"file": file, "sound": False, "problems": [str(error)], **sizes, "unread": {}}
