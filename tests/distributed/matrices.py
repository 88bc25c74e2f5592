"""Checks of Muon where ranks have parts of matrices: one rank puts each together, and all steps are one process's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import flatvars as fv
from flatvars.distributed.owners import Matrix, Owners, Run

from .launch import World, on
from .shards import full, give_exact
from .steps import assert_same, assert_same_numbers

# Several of one shape, tall and wide, uneven over ranks, smaller than a rank's share and larger, and what is no matrix.
SHAPES = ((40, 24), (40, 24), (7, 5), (33,), (40, 24), (24, 56), (1,), (70, 60), (24, 56), (2, 3), (1, 40))
STEPS = 2


class Matrices(nn.Module):
    """Parameters alone: gradients are set."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for i, shape in enumerate(SHAPES):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape, generator=generator)))


def muon(store: Any, **options: Any) -> fv.optim.Muon:
    rest = {"lr": 0.01, "weight_decay": 0.1}
    return fv.optim.Muon(
        store, lr=0.02, rest=rest, split={"p7": 2}, max_norm=0.5, skip_nonfinite=True, stats=True, **options
    )


def warm() -> None:
    """Compiles, before the ranks are forked."""
    alone = Matrices()
    store = fv.VarStore.from_module(alone)
    opt = muon(store)
    for _ in range(2):
        for param in alone.parameters():
            param.grad = torch.ones_like(param)
        opt.step()
        store.accumulate([torch.ones_like(param) for param in alone.parameters()])


def eighths(step: int, rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randint(-16, 17, shape, generator=generator) / 8.0 for shape in SHAPES]


def check_matrices_of_ranges(world: World) -> None:
    net, alone = Matrices(), Matrices()
    store, whole = fv.VarStore.from_module(net, mesh=world.mesh), fv.VarStore.from_module(alone)
    opt, reference = muon(store), muon(whole)
    for step in range(STEPS + 1):
        everyone = [eighths(step, rank) for rank in range(world.size)]
        if step == 1:
            everyone[-1][0][0, 0] = torch.nan
        for i, (mine, theirs) in enumerate(zip(net.parameters(), alone.parameters(), strict=True)):
            if i == 1 and step == 0:  # without a gradient on any rank
                continue
            mine.grad = everyone[world.rank][i]
            theirs.grad = sum(grads[i] for grads in everyone) / world.size
        for one in (opt, reference):
            one.step()
            one.zero_grad()
        assert_same(store, opt, whole, reference, f"step {step}")
    assert int(opt.skipped) == 1
    assert_same_numbers(opt.stats(), reference.stats())
    # A range of the matrices' momentum, and one of the others' averages: no more.
    held = sum(stream.nbytes for stream in opt.capture().streams.values())
    others = sum(4 * p.numel() for p in net.parameters()) + 4 * 128 * (len(SHAPES) + world.size)
    assert held <= 2 * others / world.size + 4 * 256


@on(2, 3, 4)
def check_matrices_of_shards(world: World) -> None:
    mine, alone = fully_shard(Matrices(), mesh=world.mesh), Matrices()
    opt, reference = muon(fv.VarStore.from_module(mine)), muon(fv.VarStore.from_module(alone))
    for step in range(STEPS):
        give_exact(mine, alone, step)
        opt.step()
        reference.step()
    for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(full(p), q), name
        for key, state in opt.state[p].items():
            truth = reference.state[q][key]
            assert torch.equal(full(state) if isinstance(state, DTensor) else state, truth), f"{key} of {name}"


@on(2)
def check_what_is_no_whole_matrix_is_refused(world: World) -> None:
    def tensor_parallel() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8, bias=False))
        return parallelize_module(model, world.mesh, {"0": ColwiseParallel()})

    def stepped(**options: Any) -> Tensor:
        model = tensor_parallel()
        weight, kind = model[0].weight, options.pop("kind", fv.optim.Muon)
        if options.pop("columns", False):
            model[0].weight = nn.Parameter(weight.redistribute(placements=[Shard(1)]).detach())
        weight = model[0].weight
        opt = kind(fv.VarStore.from_module(model), muon="*", weight_decay=0.0, adjust_lr_fn="none", **options)
        weight.grad = torch.ones_like(weight)
        before = full(weight).detach().clone()
        opt.step()
        return full(weight).detach() - before

    with pytest.raises(fv.FlatvarsError, match=r"Muon works on whole matrices.*each_shard=True"):
        stepped(columns=True)
    with pytest.raises(fv.FlatvarsError, match=r'^NorMuon works on whole matrices.*"rule": "AdamW"$'):
        stepped(columns=True, kind=fv.optim.NorMuon)
    rows, shards = stepped(), stepped(each_shard=True)  # of ones: of rank 1, whose one singular value is made about 1
    assert float(shards.norm()) > 1.3 * float(rows.norm()), "each shard is a matrix of its own"
    net = Matrices()
    opt = muon(fv.VarStore.from_module(net, mesh=world.mesh), each_shard=True)
    for param, grad in zip(net.parameters(), eighths(0, 0), strict=True):
        param.grad = grad
    with pytest.raises(ValueError, match="leave it out"):
        opt.step()


def check_every_element_crosses_once_each_way(world: World) -> None:
    """What is sent is counted, and what lies on one rank alone stays there."""
    half = 40 // world.size
    cut = tuple(Run(half * k, half * (k + 1)) for k in range(world.size))
    alone = tuple(Run(0, 8) if k == 1 else Run(0, 0) for k in range(world.size))
    owners = Owners([Matrix(8, 1.0, alone, 40), Matrix(40, 9.0, cut, 0)], world.rank, world.mesh.get_group())
    assert owners.here == ([0] if world.rank == 1 else [])
    assert owners.owned == ([1] if world.rank == 0 else []), "rank 1 has something to do"
    buffer = torch.full((48,), -1.0)
    buffer[:half] = torch.arange(half) + half * world.rank
    whole = torch.zeros(owners.numel)
    owners.collect(buffer, whole)
    if world.rank == 0:
        assert torch.equal(whole[:40], torch.arange(40.0))
    whole *= 2
    owners.spread(whole, buffer)
    assert torch.equal(buffer[:half], 2 * (torch.arange(half) + half * world.rank).float())
    assert bool((buffer[half:] == -1.0).all())
