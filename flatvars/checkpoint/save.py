"""Saving a store: which image goes where, in which format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..variables.registry import Registry
from ..variables.selectors import Selector
from .image import Image, image_of
from .opening import PathOrStream
from .progress import Progress
from .records import Catalog, catalog_of
from .torch_file import TORCH_SUFFIXES
from .training import as_list, capture_training
from .write import bytes_of_size, write_path, write_stream, write_torch_file

MODEL = "model.safetensors"
SHARD_SIZE = "50GB"
"""As Hugging Face's save_pretrained."""


def capture(
    registry: Registry,
    optimizer: Any = None,
    schedulers: Any = None,
    rng: bool | Mapping[str, torch.Generator] = False,
    select: Selector = None,
) -> Image:
    """Everything there is to save, in place.

    Raises:
        CheckpointError: something that no file can hold; a selection with training state, or of nothing.
        UnknownNameError: a pattern of the selection fits nothing.
        AliasError: a parameter no longer lies in the store, so that stale values would be saved.
    """
    registry.settle()
    registry.check_aliases()
    catalog = catalog_of(registry)
    trains = bool(as_list(optimizer) or as_list(schedulers) or rng)
    if select is not None and trains:
        raise CheckpointError("select= saves some variables, training resumes with all; leave one of them out")
    if select is not None:
        chosen = {variable.name for variable in registry.matching(select)}
        catalog = Catalog([record for record in catalog.records if record.name in chosen])
        if not catalog.records:
            raise CheckpointError(f"select={select!r} chooses none of the {len(registry.variables)} variables")
    image = image_of(registry, catalog)
    if trains:
        capture_training(registry, image, optimizer, schedulers, rng)
    return image


def check_target(target: PathOrStream, image: Image | None = None) -> None:
    """Raises CheckpointError for a path whose ending says no format, before any work is done."""
    if not isinstance(target, (str, os.PathLike)):
        return
    path = Path(target)
    if path.is_dir() or path.suffix == ".safetensors":
        return
    if path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(
            f"{path} says no format; give a name that ends in .safetensors, or in {', '.join(TORCH_SUFFIXES)} for "
            "torch.load, or a folder that exists"
        )
    if image is not None and image.training is not None:
        raise CheckpointError(f"training state is saved in safetensors files; give {path.with_suffix('.safetensors')}")


def write(
    image: Image, target: PathOrStream, shard_size: int | str | None = SHARD_SIZE, progress: bool = False
) -> None:
    """Writes to a path or a stream; see `VarStore.save`."""
    limit = 2**63 if shard_size is None else bytes_of_size(shard_size)
    check_target(target, image)
    with Progress("saving", progress) as bar:
        if not isinstance(target, (str, os.PathLike)):
            write_stream(image, target, bar)
            return
        path = Path(target)
        if path.suffix in TORCH_SUFFIXES and not path.is_dir():
            write_torch_file(image, path)
        else:
            write_path(image, path / MODEL if path.is_dir() else path, limit, bar)
