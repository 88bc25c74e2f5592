"""Checks of Prodigy, Adafactor and NorMuon on ranks: numbers of all variables, of rows and columns, and of outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import flatvars as fv
from flatvars.memory.piece import Piece

from . import steps
from .launch import World, on
from .matrices import SHAPES, Matrices, eighths
from .shards import contents, full, give_exact, load, meshes, model_of
from .steps import Net

STEPS = 3


def adamw(store: Any) -> fv.optim.AdamW:
    return fv.optim.AdamW(store, lr=0.02, weight_decay=0.1, max_norm=0.5)


def prodigy(store: Any) -> fv.optim.Prodigy:
    return fv.optim.Prodigy(store, d0=1e-2, weight_decay=0.1, max_norm=0.5, skip_nonfinite=True)


def adafactor(store: Any) -> fv.optim.Adafactor:
    return fv.optim.Adafactor(store, lr=0.1, weight_decay=0.1, max_norm=0.5, skip_nonfinite=True)


def normuon(store: Any) -> fv.optim.NorMuon:
    return fv.optim.NorMuon(store, lr=0.02, split={"p7": 2}, in_out="p5", max_norm=0.5, skip_nonfinite=True)


KINDS: tuple[Callable[[Any], Any], ...] = (prodigy, adafactor, normuon)


def warm() -> None:
    """Compiles, before the ranks are forked."""
    for kind in KINDS:
        opt = kind(fv.VarStore.from_module(alone := Matrices()))
        for param, grad in zip(alone.parameters(), eighths(0, 0), strict=True):
            param.grad = grad
        opt.step()


def whole_of(state: Any, truth: Any) -> tuple[Any, Any]:
    """A state and what one process has, where this rank can tell."""
    if isinstance(state, Piece):
        flat = truth.contiguous().view(-1)[state.first : state.first + len(state.local)]
        return state.local, flat
    return (full(state) if isinstance(state, DTensor) else state), truth


def assert_near(mine: nn.Module, opt: Any, alone: nn.Module, reference: Any, about: str) -> None:
    """To the last bits of sums that were added up in another order."""
    for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(full(p), q, rtol=1e-5, atol=1e-6, msg=f"{about}: {name}")
        truth = reference.state.get(q, {})
        for key, value in truth.items():
            state, expected = whole_of(opt.state[p][key], value)
            torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-7, msg=f"{about}: {key} of {name}")
    for key in ("d", "d_max", "d_numerator"):
        if key in opt.param_groups[0]:
            found, expected = (float(one.param_groups[0][key]) for one in (opt, reference))
            assert abs(found - expected) <= 1e-5 * abs(expected), f"{about}: {key} {found}, {expected}"


def given(world: World, net: nn.Module, alone: nn.Module, step: int) -> None:
    """To ranks and to one process: some without a gradient on one rank or on all, and a NaN on one in step 1."""
    everyone = [eighths(step, rank) for rank in range(world.size)]
    if step == 1:
        everyone[-1][0][0, 0] = torch.nan
    for i, (mine, theirs) in enumerate(zip(net.parameters(), alone.parameters(), strict=True)):
        if i in (1, 3) and step == 0:
            continue
        mine.grad = None if i == 4 and world.rank == 0 else everyone[world.rank][i]
        theirs.grad = sum(grads[i] for rank, grads in enumerate(everyone) if i != 4 or rank) / world.size


# Checks ---------------------------------------------------------------------------------------------------------------


def check_the_family_of_ranges(world: World) -> None:
    for kind in KINDS:
        net, alone = Matrices(), Matrices()
        opt, reference = kind(fv.VarStore.from_module(net, mesh=world.mesh)), kind(fv.VarStore.from_module(alone))
        for step in range(STEPS):
            given(world, net, alone, step)
            for one in (opt, reference):
                one.step()
                one.zero_grad()
            assert_near(net, opt, alone, reference, f"{kind.__name__}, step {step}")
        assert int(opt.skipped) == 1
        if kind is normuon:
            assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters(), strict=True))


@on(3)
def check_adafactor_of_other_shapes(world: World) -> None:
    """Of four axes in another memory order, of none, without elements; cut by borders within a row."""
    net, alone = Net(), Net()
    opt, reference = adafactor(fv.VarStore.from_module(net, mesh=world.mesh)), adafactor(fv.VarStore.from_module(alone))
    for step in range(2):
        absent = ((0, 1), (-1, 4)) if step else ()
        steps.give(net, steps.gradients(world.rank, step, absent))
        steps.give(alone, steps.mean(world, step, absent))
        for one in (opt, reference):
            one.step()
            one.zero_grad()
        assert_near(net, opt, alone, reference, f"step {step}")


def check_the_family_of_shards(world: World) -> None:
    """Rows over one dimension of a mesh; with replicas on 4 ranks, and tensor parallelism for those that allow it."""
    ways = [fully_shard(Matrices(), mesh=world.mesh)]
    if world.size == 4:
        ways = [fully_shard(Matrices(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))]
    for kind in KINDS:
        for mine in (*ways, *(model for _, model in meshes(world) if kind is not normuon)):
            alone = Matrices() if mine in ways else model_of()
            state = {name: full(p).detach().clone() for name, p in mine.named_parameters()}
            alone.load_state_dict(state)
            opt, reference = (kind(fv.VarStore.from_module(one)) for one in (mine, alone))
            for step in range(2):
                give_exact(mine, alone, step)
                for one in (opt, reference):
                    one.step()
                    one.zero_grad()
                assert_near(mine, opt, alone, reference, f"{kind.__name__}, step {step}")


@on(2)
def check_the_family_goes_on_from_checkpoints(world: World) -> None:
    """Saved by ranges, loaded by shards and by one process; saved by shards, loaded by ranges."""
    for kind in (adamw, *KINDS):
        net, alone = Matrices(), Matrices()
        opt, reference = kind(fv.VarStore.from_module(net, mesh=world.mesh)), kind(fv.VarStore.from_module(alone))
        given(world, net, alone, 2)
        for one in (opt, reference):
            one.step()
            one.zero_grad()
        path = world.folder / kind.__name__
        dcp.save(contents(net, opt), checkpoint_id=path)

        shards = fully_shard(zeroed(Matrices()), mesh=world.mesh)
        other = kind(fv.VarStore.from_module(shards))
        load(shards, other, path)
        assert_near(shards, other, alone, reference, f"{kind.__name__}, shards")
        single = zeroed(Matrices())
        one = kind(fv.VarStore.from_module(single))
        load(single, one, path, no_dist=True)
        give_exact(shards, alone, 3)
        give_exact(single, single, 3)
        for each in (other, one, reference):
            each.step()
            each.zero_grad()
        assert_near(shards, other, alone, reference, f"{kind.__name__}, shards went on")
        assert_near(single, one, alone, reference, f"{kind.__name__}, one process went on")

        back = world.folder / f"{kind.__name__}.shards"
        dcp.save(contents(shards, other), checkpoint_id=back)
        last = zeroed(Matrices())
        final = kind(fv.VarStore.from_module(last, mesh=world.mesh))
        load(last, final, back)
        give_exact(last, alone, 4)
        final.step()
        reference.step()
        assert_near(last, final, alone, reference, f"{kind.__name__}, ranges went on")


@on(3, 4)
def check_fewer_ranks_go_on_with_shards(world: World) -> None:
    """Saved by shards of all ranks, loaded by 2: by shards, by ranges, and by torch.optim over shards."""
    mine, alone = fully_shard(Matrices(), mesh=world.mesh), Matrices()
    opt, reference = adamw(fv.VarStore.from_module(mine)), adamw(fv.VarStore.from_module(alone))
    give_exact(mine, alone, 0)
    opt.step()
    reference.step()
    path = world.folder / "fewer-shards"
    dcp.save(contents(mine, opt), checkpoint_id=path)
    single = zeroed(Matrices())
    one = adamw(fv.VarStore.from_module(single))
    load(single, one, path, no_dist=True)
    assert_near(single, one, alone, reference, "one process")
    group = dist.new_group([0, 1])
    if world.rank < 2:
        mesh = DeviceMesh.from_group(group, "cpu")
        shards, ranges, plain = fully_shard(Matrices(), mesh=mesh), Matrices(), fully_shard(Matrices(), mesh=mesh)
        makers = (
            (shards, adamw(fv.VarStore.from_module(shards))),
            (ranges, adamw(fv.VarStore.from_module(ranges, mesh=mesh))),
            (plain, torch.optim.AdamW(plain.parameters())),
        )
        for module, one in makers:
            load(zeroed(module), one, path, process_group=group)
            assert_near(module, one, alone, reference, type(one).__module__)
    dist.barrier()


@on(2)
def check_checkpoints_of_torch_over_shards(world: World) -> None:
    """Of torch.optim over FSDP2, whose param groups have fewer entries: loaded by shards, ranges and one process."""
    theirs, alone = fully_shard(Matrices(), mesh=world.mesh), Matrices()
    torchs = torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=0.1)
    reference = torch.optim.AdamW(alone.parameters(), lr=0.02, weight_decay=0.1)
    give_exact(theirs, alone, 0)
    torchs.step()
    reference.step()
    path = world.folder / "torch-shards"
    dcp.save(contents(theirs, torchs), checkpoint_id=path)
    makers: tuple[tuple[nn.Module, dict[str, Any], dict[str, Any]], ...] = (
        (fully_shard(Matrices(), mesh=world.mesh), {}, {}),
        (Matrices(), {"mesh": world.mesh}, {}),
        (Matrices(), {}, {"no_dist": True}),
    )
    for module, options, ways in makers:
        opt = adamw(fv.VarStore.from_module(zeroed(module), **options))
        load(module, opt, path, planner=DefaultLoadPlanner(allow_partial_load=True), **ways)
        assert_near(module, opt, alone, reference, f"{options}")


def zeroed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for param in module.parameters():
            param.zero_()
    return module


@on(2)
def check_what_all_ranks_keep_is_small(world: World) -> None:
    """Means of rows and columns are whole on every rank; of vectors all squares."""
    opt = adafactor(fv.VarStore.from_module(net := Matrices(), mesh=world.mesh))
    for param, grad in zip(net.parameters(), eighths(0, world.rank), strict=True):
        param.grad = grad
    opt.step()
    for param, shape in zip(net.parameters(), SHAPES, strict=True):
        kept = {name: tuple(x.shape) for name, x in opt.state[param].items() if name != "step"}
        expected = {"row_var": (shape[0], 1), "col_var": (1, shape[-1])} if len(shape) > 1 else {"variance": shape}
        assert kept == expected
