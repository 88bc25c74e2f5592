"""Opening a checkpoint: which file a path means, and what kind of file it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..errors import CheckpointError, DamagedFileError
from .blocks import PIECE
from .header import MAX_HEADER, listing, parse_json
from .source import Reader, SafetensorsFile, Shards, Source
from .torch_file import KeyPath, TorchFile, is_torch_file

INDEX = ".index.json"
# In the order of Hugging Face's loaders.
NAMES_IN_A_FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
TRIES = 10
"""Looks at a path where other processes save: what one of them renamed between our looks is whole at the next."""

PathOrStream = str | os.PathLike[str] | IO[bytes]

TorchKey = str | Sequence[str] | None
"""Under which key of a torch file the state dict lies, or under which keys, one within the other."""


@contextmanager
def opened(target: PathOrStream, key: TorchKey = None) -> Iterator[Source]:
    """Opens a checkpoint: a file, an index, a folder, or a readable binary stream.

    Args:
        key: Where the state dict lies in a file of torch; looked for if not given.

    Raises:
        CheckpointError: nothing is there.
        DamagedFileError: what is there is no sound checkpoint.
    """
    keys = () if key is None else (key,) if isinstance(key, str) else tuple(key)
    source = _open_path(Path(target), keys) if isinstance(target, (str, os.PathLike)) else _open_stream(target, keys)
    try:
        yield source
    finally:
        source.close()


def _open_stream(stream: IO[bytes], keys: KeyPath) -> Source:
    if stream.seekable() and hasattr(stream, "readinto"):
        return _source(Reader(stream, owned=False), "the stream", None, keys)
    spooled = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the source
    while piece := stream.read(PIECE):
        spooled.write(piece)
    spooled.seek(0)
    return _source(Reader(spooled, owned=True), "the stream", None, keys)


def _open_file(path: Path, keys: KeyPath) -> Source:
    if not path.is_file():  # one that is there and no file, such as a pipe, would be waited for
        raise FileNotFoundError(path)
    return _source(Reader(path.open("rb", buffering=0), owned=True), str(path), path, keys)


def _source(reader: Reader, name: str, path: Path | None, keys: KeyPath) -> Source:
    try:
        start = bytes(reader.read(0, min(16, reader.size)))
        if is_torch_file(start, "" if path is None else path.suffix):
            return TorchFile(reader, name, path, keys)
        if keys:
            raise CheckpointError(f"key={keys!r} is for files of torch.save, and {name} is none; leave it out")
        return SafetensorsFile(reader, name)
    except BaseException:
        reader.close()
        raise


def _open_path(path: Path, keys: KeyPath) -> Source:
    for left in reversed(range(TRIES)):
        found = locate(path)
        try:
            return _open_index(found, keys) if found.name.endswith(INDEX) else _open_file(found, keys)
        except FileNotFoundError:
            if not left:
                raise DamagedFileError(f"{found} names files that are not there; a shard is missing") from None
    raise AssertionError("unreachable")


def locate(path: Path) -> Path:
    """The file to open for a path: itself, its index, or the model of a folder.

    Raises:
        CheckpointError: there is none.
    """
    # A save to a link replaces what it points to, and writes an index beside that.
    choices = [path / name for name in NAMES_IN_A_FOLDER] if path.is_dir() else [path, _index(path)]
    choices += [_index(Path(os.path.realpath(choice))) for choice in choices if choice.is_symlink()]
    for choice in choices:
        if choice.is_file():
            return choice
    raise CheckpointError(f"no checkpoint at {path}: none of {listing(choice.name for choice in choices)} is there")


def _index(path: Path) -> Path:
    return path.with_name(f"{path.name}{INDEX}")


def _open_index(path: Path, keys: KeyPath) -> Source:
    with path.open("rb") as file:
        text = file.read(MAX_HEADER + 1)
    if len(text) > MAX_HEADER:
        raise DamagedFileError(f"{path} is larger than {MAX_HEADER:,} bytes and is no index")
    content = parse_json(text, str(path))
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise DamagedFileError(f"{path} has no weight_map from tensor names to file names")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if not name or name in (".", "..") or set(name) & {"/", "\\", "\0", ":"}]
    if outside:
        raise DamagedFileError(f"{path} names files outside of its folder: {listing(outside)}")
    metadata = content.get("metadata")
    save = metadata.get("flatvars.save") if isinstance(metadata, dict) else None
    files: dict[str, Source] = {}
    try:
        for name in names:
            files[name] = _open_file(path.parent / name, keys)
        return Shards(files, weight_map, str(path), save)
    except BaseException:
        for source in files.values():
            source.close()
        raise
