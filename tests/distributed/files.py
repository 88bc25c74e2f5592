"""Checks of files of one process that are loaded into modules which `fully_shard` or tensor parallelism divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import flatvars as fv

from .launch import World, on
from .matrices import Matrices
from .shards import adamw, full, give_exact


def warm() -> None:
    """Compiled with the others'."""


def made(seed: int = 0) -> nn.Sequential:
    """With buffers, rows of whole blocks, and what is uneven."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(128, 24), nn.BatchNorm1d(24), nn.Linear(24, 5))


def saved(path: Path, formats: Any = None) -> tuple[nn.Sequential, fv.optim.AdamW]:
    """A model of one process, and its file."""
    alone = made()
    opt = adamw(fv.VarStore.from_module(alone), state_format=formats)
    give_exact(alone, alone, 0)
    alone(torch.randn(7, 128))  # moves the means of the batch norm
    opt.step()
    opt.zero_grad()
    opt.store.save(path, opt)
    return alone, opt


def assert_whole(mine: nn.Module, opt: Any, alone: nn.Module, reference: Any) -> None:
    for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(full(p), q), name
        for key, truth in reference.state[q].items():
            state = opt.state[p][key]
            assert torch.equal(full(state) if isinstance(state, DTensor) else state, truth), f"{key} of {name}"
    for (name, b), c in zip(mine.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(b, c), name


@on(2)
def check_a_file_of_one_process_is_loaded_by_shards(world: World) -> None:
    """Values, states, counts and buffers; then steps go on as those of one process."""
    for formats in (None, "root8"):
        path = world.folder / f"shards.{formats}.{world.rank}.safetensors"
        alone, reference = saved(path, formats)
        for mine in (
            fully_shard(made(1), mesh=world.mesh),
            parallelize_module(made(1), world.mesh, {"0": RowwiseParallel()}),
        ):
            store = fv.VarStore.from_module(mine)
            opt = adamw(store)
            store.load(path, opt)
            assert_whole(mine, opt, alone, reference)
            mine.to_empty(device="cpu")  # other memory, of buffers too
            store.load(path, opt)
            assert_whole(mine, opt, alone, reference)
        if formats is None:
            give_exact(mine, alone, 1)
            opt.step()
            reference.step()
            assert_whole(mine, opt, alone, reference)


@on(2)
def check_values_of_ranges_are_loaded_by_shards(world: World) -> None:
    """`store.save(path)` of a mesh's store holds all values."""
    path = world.folder / f"values.{world.rank}.safetensors"
    net = Matrices()
    fv.VarStore.from_module(net, mesh=world.mesh).save(path)
    mine = fully_shard(Matrices(), mesh=world.mesh)
    store = fv.VarStore.from_module(mine)
    with torch.no_grad():
        for param in mine.parameters():
            param.zero_()
    store.load(path)
    assert all(torch.equal(full(p), q) for p, q in zip(mine.parameters(), net.parameters(), strict=True))
    with pytest.raises(fv.FlatvarsError, match=r"torch\.distributed\.checkpoint"):
        store.save(path)


@on(2)
def check_files_that_do_not_fit_shards_change_nothing(world: World) -> None:
    path = world.folder / f"misfit.{world.rank}.safetensors"
    saved(path)
    with torch.no_grad():
        other = nn.Sequential(nn.Linear(128, 25), nn.BatchNorm1d(24), nn.Linear(24, 5))
    store = fv.VarStore.from_module(fully_shard(other, mesh=world.mesh))
    before = full(other[2].weight).clone()
    with pytest.raises(fv.MismatchError, match=r"'0\.weight' has shape \(25, 128\) in the store and \(24, 128\)"):
        store.load(path)
    wide = made()
    wide[1].register_buffer("extra", torch.zeros(2))
    with pytest.raises(fv.MismatchError, match=r"buffer '1\.extra' of the module is not in the file"):
        fv.VarStore.from_module(fully_shard(wide, mesh=world.mesh)).load(path)
    frozen = made()
    frozen[2].weight.requires_grad_(False)
    held = fv.VarStore.from_module(fully_shard(frozen, mesh=world.mesh))
    with pytest.raises(fv.MismatchError, match="requires_grad before fully_shard"):
        held.load(path, adamw(held))
    assert torch.equal(full(other[2].weight), before)
