"""Checks of torch.distributed.checkpoint: any number of ranks before and after, torch.optim's state dicts both ways."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import flatvars as fv

from .launch import World, on
from .steps import Net, adamw, assert_same, give, gradients, mean

STEPS = 2


def warm() -> None:
    """Compiled with the steps'."""


def trained(world: World) -> tuple[Net, fv.VarStore, fv.optim.AdamW]:
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store, max_norm=0.5)
    for step in range(STEPS):
        give(net, gradients(world.rank, step))
        opt.step()
        opt.zero_grad()
    return net, store, opt


def alone(world: World, steps: int = STEPS) -> tuple[Net, fv.VarStore, fv.optim.AdamW]:
    """The same, by one process."""
    net = Net()
    store = fv.VarStore.from_module(net)
    opt = adamw(store, max_norm=0.5)
    for step in range(steps):
        give(net, mean(world, step, ()))
        opt.step()
        opt.zero_grad()
    return net, store, opt


def contents(net: Any, opt: Any) -> dict[str, Any]:
    model, optim = get_state_dict(net, opt)
    return {"model": model, "optim": optim}


def put(net: Any, opt: Any, state: dict[str, Any]) -> None:
    set_state_dict(net, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])


def load(net: Any, opt: Any, path: Path, **options: Any) -> None:
    state = contents(net, opt)
    dcp.load(state, checkpoint_id=path, **options)
    put(net, opt, state)


@on(2)
def check_a_saved_run_goes_on(world: World) -> None:
    """On as many ranks, and on one without a group; then from one process to all ranks."""
    net, store, opt = trained(world)
    path = world.folder / "divided"
    dcp.save(contents(net, opt), checkpoint_id=path)
    expected_net, expected, reference = alone(world)
    assert_same(store, opt, expected, reference, "a save changes nothing")

    again = Net(seed=5)
    mine = fv.VarStore.from_module(again, mesh=world.mesh)
    other = adamw(mine, max_norm=0.5)
    load(again, other, path)
    assert_same(mine, other, expected, reference, "loaded by as many ranks")
    give(again, gradients(world.rank, STEPS))
    give(expected_net, mean(world, STEPS, ()))
    other.step()
    reference.step()
    assert_same(mine, other, expected, reference, "gone on")

    single = Net(seed=5)
    whole = fv.VarStore.from_module(single)
    one = adamw(whole, max_norm=0.5)
    load(single, one, path, no_dist=True)
    give(single, mean(world, STEPS, ()))
    one.step()
    assert_same(mine, other, whole, one, "loaded by one process")

    written = world.folder / f"whole.{world.rank}"
    dcp.save(contents(single, one), checkpoint_id=written, no_dist=True)
    last = Net(seed=6)
    final = fv.VarStore.from_module(last, mesh=world.mesh)
    divided = adamw(final, max_norm=0.5)
    load(last, divided, written, no_dist=True)
    assert_same(final, divided, whole, one, "from one process to all")


@on(2, 3, 4)
def check_fewer_ranks_go_on(world: World) -> None:
    """Elastic use: saved on all ranks, loaded by half of them, and by one; saved on 3, loaded by 2."""
    net, store, opt = trained(world)
    path = world.folder / "elastic"
    dcp.save(contents(net, opt), checkpoint_id=path)
    _, expected, reference = alone(world)
    for size in (2,) if world.size == 3 else (world.size // 2, 1):
        members = list(range(size))
        group = dist.new_group(members)
        if world.rank in members:
            mesh = dist.device_mesh.DeviceMesh.from_group(group, "cpu")
            fewer = Net(seed=7)
            mine = fv.VarStore.from_module(fewer, mesh=mesh)
            other = adamw(mine, max_norm=0.5)
            load(fewer, other, path, process_group=group)
            assert_same(mine, other, expected, reference, f"{size} of {world.size} ranks")
        dist.barrier()


def check_an_asynchronous_save(world: World) -> None:
    net, store, opt = trained(world)
    path = world.folder / "async"
    group = dist.new_group(backend="gloo")  # of its own: its messages would mix with those of steps
    future = dcp.async_save(contents(net, opt), checkpoint_id=path, process_group=group)
    give(net, gradients(world.rank, STEPS))
    opt.step()
    future.result()
    again = Net(seed=5)
    mine = fv.VarStore.from_module(again, mesh=world.mesh)
    other = adamw(mine, max_norm=0.5)
    load(again, other, path)
    _, expected, reference = alone(world)
    assert_same(mine, other, expected, reference, "as it was when it was saved")


def check_nothing_happens_before_the_first_step(world: World) -> None:
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store)
    before = store.values.clone()
    state = contents(net, opt)
    assert torch.equal(store.values, before)
    assert all(float(entry["step"]) == 0.0 for entry in state["optim"]["state"].values())
    assert set(state["optim"]["state"]) == {name for name, _ in net.named_parameters()}
    give(net, gradients(world.rank, 0))
    opt.step()
    fresh, whole, reference = alone(world, 0)
    reference = adamw(whole)
    give(fresh, mean(world, 0, ()))
    reference.step()
    assert_same(store, opt, whole, reference, "the first step")


@on(2)
def check_torch_optim_goes_on_and_back(world: World) -> None:
    net, store, opt = trained(world)
    path = world.folder / "ours"
    dcp.save(contents(net, opt), checkpoint_id=path)
    plain = Net(seed=8)
    theirs = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    load(plain, theirs, path)
    _, expected, reference = alone(world)
    for name, param in plain.named_parameters():
        state, truth = theirs.state[param], reference.state[expected[name].param]
        assert torch.equal(param, expected[name].value), name
        assert all(torch.equal(state[key], truth[key]) for key in ("step", "exp_avg", "exp_avg_sq")), name
    assert theirs.param_groups[0]["lr"] == 0.02
    back = world.folder / "theirs"
    dcp.save(contents(plain, theirs), checkpoint_id=back)
    again = Net(seed=9)
    mine = fv.VarStore.from_module(again, mesh=world.mesh)
    other = adamw(mine)
    # torch.optim has fewer entries in its param groups: those stay as they are.
    load(again, other, back, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert_same(mine, other, expected, reference, "from torch.optim")
    # And in memory: a state dict of whole tensors.
    final = fv.VarStore.from_module(Net(seed=10), mesh=world.mesh)
    last = adamw(final)
    last.load_state_dict(theirs.state_dict())
    final.copy_(expected)
    assert_same(final, last, expected, reference, "a state dict of torch.optim")


def check_copies_and_pickles_are_refused(world: World) -> None:
    net, store, opt = trained(world)
    with pytest.raises(fv.FlatvarsError, match="shared out over ranks"):
        copy.deepcopy((net, store, opt))
    with pytest.raises(fv.FlatvarsError, match=r"torch\.distributed\.checkpoint"):
        torch.save(opt.state_dict(), world.folder / f"refused.{world.rank}")
