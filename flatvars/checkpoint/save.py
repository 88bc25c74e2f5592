"""Saving a store: which image goes where, in which format."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from .image import Image
from .opening import PathOrStream
from .progress import Progress
from .torch_file import TORCH_SUFFIXES
from .write import bytes_of_size, write_path, write_stream, write_torch_file

MODEL = "model.safetensors"
SHARD_SIZE = "50GB"
"""As Hugging Face's save_pretrained."""


def check_target(target: PathOrStream, image: Image | None = None, shard_size: int | str | None = SHARD_SIZE) -> None:
    """Raises before any work is done.

    Raises:
        CheckpointError: a path whose ending says no format, training state for a torch file, or a size of shards for
            what has none; or state that is shared out over ranks.
        ValueError: a size that is none.
    """
    if image is not None and any(plane.held.divided for plane in image.planes):
        raise CheckpointError(
            "the optimizer's state is shared out over ranks, and this file would hold one rank's: save with "
            "torch.distributed.checkpoint on all ranks, dcp.save(dict(zip(('model', 'optim'), get_state_dict(model, "
            "optimizer)))), or save the values alone, which every rank has, without optimizer="
        )
    limit = None if shard_size in (None, SHARD_SIZE) else bytes_of_size(shard_size)
    if not isinstance(target, (str, os.PathLike)):
        _check_whole("a stream", limit)
        return
    path = Path(target)
    if path.is_dir() or path.suffix == ".safetensors":
        return
    if path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(
            f"{path} says no format; give a name that ends in .safetensors, or in {', '.join(TORCH_SUFFIXES)} for "
            "torch.load, or a folder that exists"
        )
    _check_whole(str(path), limit)
    if image is not None and image.training is not None:
        raise CheckpointError(f"training state is saved in safetensors files; give {path.with_suffix('.safetensors')}")


def _check_whole(target: str, limit: int | None) -> None:
    if limit is not None:
        raise CheckpointError(
            f"shard_size={limit} is for safetensors files, and {target} is one file whatever its size; leave it out"
        )


def write(
    image: Image, target: PathOrStream, shard_size: int | str | None = SHARD_SIZE, progress: bool = False
) -> None:
    """Writes to a path or a stream; see `VarStore.save`."""
    limit = 2**63 if shard_size is None else bytes_of_size(shard_size)
    check_target(target, image, shard_size)
    with Progress("saving", progress) as bar:
        if not isinstance(target, (str, os.PathLike)):
            write_stream(image, target, bar)
            return
        path = Path(target)
        if path.suffix in TORCH_SUFFIXES and not path.is_dir():
            write_torch_file(image, path)
        else:
            write_path(image, path / MODEL if path.is_dir() else path, limit, bar)
