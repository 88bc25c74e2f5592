"""Files and snapshots of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..checkpoint import SHARD_SIZE, Snapshot
from ..checkpoint.capture import capture
from ..checkpoint.load import Options, load
from ..checkpoint.match import DtypePolicy, Rename
from ..checkpoint.opening import PathOrStream, TorchKey
from ..checkpoint.save import write
from ..checkpoint.snapshot import restore, take
from ..variables.selectors import Selector
from .named import ByName


class FilingStore(ByName):
    """A part of `VarStore`."""

    def save(
        self,
        path: PathOrStream,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        select: Selector = None,
        shard_size: int | str | None = SHARD_SIZE,
        progress: bool = False,
    ) -> None:
        """Writes a checkpoint: whole or not at all, whatever happens on the way.

        Args:
            path: Ends in .safetensors; or .pt, .pth or .bin for values that `torch.load` reads; or a folder that exists
                (its file is model.safetensors); or a binary stream.
            optimizer: One or several over this store: training state is saved, too (state, hyper-parameters, step
                counts, masks, gradients of an unfinished cycle), under the variables' names.
            schedulers: One or several; anything with a `state_dict()` of plain data.
            rng: True for the global random number generators (torch, CUDA, NumPy, Python), or generators by name, whose
                states are saved beside the global ones.
            select: Which variables, as for `flatvars.select`; all if not given.
            shard_size: Bytes ("5GB") above which there are several files and an index; None for one file.
            progress: Show a bar when it takes long.

        Raises:
            CheckpointError: no room on the disk, or something that no file can hold. What was there before, is there.
            AliasError: a Parameter no longer lies in the store, which would save stale values.

        Example:
            >>> store.save("step_1000.safetensors", optimizer, scheduler, rng=True)
        """
        write(capture(self.registry, optimizer, schedulers, rng, select), path, shard_size, progress)

    def load(
        self,
        path: PathOrStream,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        strict: bool = True,
        dtype: DtypePolicy = "store",
        rename: Rename = None,
        select: Selector = None,
        verify: bool = True,
        progress: bool = False,
        key: TorchKey = None,
    ) -> None:
        """Loads a checkpoint of this library, or a safetensors or torch file of any other.

        Everything is checked, all names and shapes at once, before the first byte is written. Nothing is initialized.
        Where ranks have ranges or shards, all load the same file, and each takes its part.

        Args:
            path: A file, an index, a folder with one of Hugging Face's file names, or a binary stream.
            optimizer: Resume training: state, counts, hyper-parameters, masks, gradients. One or several, as saved.
            schedulers, rng: As saved; see `save`.
            strict: Names in the file that the store does not have are an error, too.
            dtype: "store" converts floating values to the variables' dtypes, "file" re-carves the store in the file's,
                "exact" refuses others.
            rename: From names in the file to names in the store: a mapping, a function, or pairs of (regular
                expression, replacement) applied one after another.
            select: As for `save`: which variables to load.
            verify: Compare checksums first, which reads the file twice.
            progress: Show a bar when it takes long.
            key: Under which key of a torch file the state dict lies, or keys, one within the other; if not given,
                it is the whole, or looked for under "state_dict", "model_state_dict" and "model".

        Raises:
            MismatchError: the file does not fit; every problem is named. Nothing has changed.
            DamagedFileError: the file is damaged; where, is said. Nothing has changed.
            CheckpointError: no such file, or one that wants to run code.

        Example:
            >>> store.load("model.safetensors", rename=[(r"^module\\.", "")])
        """
        options = Options(optimizer, schedulers, rng, strict, False, dtype, rename, select, verify, progress, key)
        load(self.registry, path, options)

    def load_partial(
        self,
        path: PathOrStream,
        *,
        dtype: DtypePolicy = "store",
        rename: Rename = None,
        select: Selector = None,
        verify: bool = True,
        progress: bool = False,
        key: TorchKey = None,
    ) -> list[str]:
        """Loads what a file holds of this store; arguments and errors as for `load`, shapes must fit.

        Returns:
            Names of the variables that the file does not hold, in creation order; they keep their values.
        """
        options = Options(None, None, False, False, True, dtype, rename, select, verify, progress, key)
        return load(self.registry, path, options)

    def read(self, path: PathOrStream, *, rename: Rename = None, key: TorchKey = None) -> None:
        """Loads every variable and keeps every dtype; what else is in the file is ignored."""
        load(self.registry, path, Options(strict=False, rename=rename, key=key))

    def fill(self, path: PathOrStream, *, rename: Rename = None, key: TorchKey = None) -> None:
        """Loads the variables that a file happens to hold and keeps every dtype; all else is left alone."""
        load(self.registry, path, Options(partial=True, rename=rename, key=key))

    def snapshot(
        self,
        optimizer: Any = None,
        schedulers: Any = None,
        rng: bool | Mapping[str, torch.Generator] = False,
        *,
        reuse: Snapshot | None = None,
    ) -> Snapshot:
        """Copies the whole training state into host memory, one copy per stream; arguments as for `save`.

        Args:
            reuse: A snapshot whose memory is taken over, which saves allocating it; it is empty afterwards.

        Raises:
            CheckpointError: an earlier snapshot's save in the background failed.

        Example:
            >>> snapshot = store.snapshot(optimizer)
            >>> snapshot.save("step_1000.safetensors")  # in the background
        """
        return take(self.registry, optimizer, schedulers, rng, reuse)

    def restore(self, snapshot: Snapshot) -> None:
        """Rolls values, optimizers, schedulers and generators back to a snapshot of this store, bit for bit.

        Raises:
            MismatchError: variables were added since, or it is another store's.
        """
        restore(self.registry, snapshot)
