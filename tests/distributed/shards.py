"""Checks of modules that `fully_shard` divided: beside torch.optim over FSDP2, and beside one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import flatvars as fv
from flatvars.distributed.shards import beside_mesh, divided_as

from .launch import World, on
from .steps import assert_same_numbers, averaged

STEPS = 4
LR = 0.02
RULES = {"*.bias": fv.init.uniform(-0.1, 0.1), "*gain": fv.init.ones(), "*": fv.init.kaiming_normal()}


class Block(nn.Module):
    """Uneven over 2 and 4 ranks, and a gain of two elements, of which two of four ranks have nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(9, 14)
        self.second = nn.Linear(14, 9, bias=False)
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x))) * self.gain.sum()


def model_of() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(Block(), Block(), nn.Linear(9, 5))


def divided(model: nn.Sequential, **options: Any) -> nn.Sequential:
    for block in model[:-1]:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 9, generator=generator), torch.randn(6, 5, generator=generator)


def backward(model: nn.Module, rank: int, step: int) -> Tensor:
    x, y = batch(rank, step)
    loss = nn.functional.mse_loss(model(x).float(), y)
    loss.backward()
    return loss.detach()


def adamw(params: Any, **options: Any) -> fv.optim.AdamW:
    return fv.optim.AdamW(params, lr=LR, weight_decay=0.1, **options)


def warm() -> None:
    """Compiles what the checks share, before the ranks are forked."""
    store = fv.VarStore.from_module(model := model_of())
    opt = adamw(store, max_norm=0.5)
    for _ in range(2):
        backward(model, 0, 0)
        opt.step()
        store.grad_norm()
    opt.zero_grad()
    for _ in range(2):
        backward(model, 0, 0)
        store.accumulate()
    opt.step()
    rounded = adamw(fv.VarStore.from_module(other := model_of()), max_norm=0.5, state_dtype=torch.bfloat16)
    backward(other, 0, 0)
    rounded.step()
    fv.init.apply_(rounded.store, RULES)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_whole(model: nn.Module, opt: Any, alone: nn.Module, reference: Any, about: str) -> None:
    """Values and states of all shards together are those of one process, bit for bit."""
    for (name, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(full(mine), theirs), f"{about}: {name}"
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(full(opt.state[mine][key]), reference.state[theirs][key]), f"{about}: {key} of {name}"


def give_exact(model: nn.Module, alone: nn.Module, step: int) -> None:
    """The same gradients in eighths to a divided model and to a whole one: sums of their squares are exact."""
    generator = torch.Generator().manual_seed(step)
    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        theirs.grad = torch.randint(-16, 17, theirs.shape, generator=generator) / 8.0
        mine.grad = theirs.grad.clone()
        if isinstance(mine, DTensor):
            mine.grad = distribute_tensor(mine.grad, mine.device_mesh, mine.placements, src_data_rank=None)


# Checks ---------------------------------------------------------------------------------------------------------------


def check_losses_are_those_of_torch_over_fsdp2(world: World) -> None:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for about, options in (
        ("plain", {}),
        ("kept after the forward", {"reshard_after_forward": False}),
        ("bfloat16", {"mp_policy": half}),
        ("on the CPU", {"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
    )[: 1 if world.size > 2 else None]:
        mine, theirs = (divided(model_of(), mesh=world.mesh, **options) for _ in range(2))
        store = fv.VarStore.from_module(mine)
        opt = adamw(store, max_norm=0.5)
        reference = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=0.1)
        for step in range(STEPS):
            losses = backward(mine, world.rank, step), backward(theirs, world.rank, step)
            norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            opt.step()
            reference.step()
            assert abs(float(losses[0] - losses[1])) < 1e-5, f"{about}, step {step}: {losses}"
            torch.testing.assert_close(opt.grad_norm, full(norm), rtol=1e-6, atol=0.0)
            opt.zero_grad()
            reference.zero_grad()
            assert all(p.grad is None for p in mine.parameters())


@on(2, 3, 4)
def check_shards_are_stepped_as_by_one_process(world: World) -> None:
    for clip in (None, 0.5):
        alone = model_of()
        mine = divided(model_of(), mesh=world.mesh)
        store, whole = fv.VarStore.from_module(mine), fv.VarStore.from_module(alone)
        opt, reference = adamw(store, max_norm=clip), adamw(whole, max_norm=clip)
        for step in range(STEPS):
            give_exact(mine, alone, step)
            opt.step()
            reference.step()
            if clip is not None:
                assert torch.equal(opt.grad_norm, reference.grad_norm)
                assert torch.equal(store.grad_norm(), reference.grad_norm)
        assert_whole(mine, opt, alone, reference, f"clip {clip}")
        # FSDP2 computes with what was stepped.
        x, _ = batch(0, 0)
        torch.testing.assert_close(mine(x), alone(x))


def columns_and_rows(model: nn.Sequential, mesh: Any) -> nn.Sequential:
    """Tensor parallelism in the blocks: `first` by its rows, which are not even, `second` by its columns."""
    for block in model[:-1]:
        parallelize_module(block, mesh, {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return model


def meshes(world: World) -> list[tuple[str, nn.Sequential]]:
    """The model divided in all ways that so many ranks allow."""
    if world.size == 2:
        return [("tensor parallel beside plain", columns_and_rows(model_of(), world.mesh))]
    hybrid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    mixed = columns_and_rows(model_of(), both["tensor"])
    return [("hybrid", divided(model_of(), mesh=hybrid)), ("tensor and data", divided(mixed, mesh=both["data"]))]


def check_other_meshes_are_one_process(world: World) -> None:
    """Replicas, two dimensions, and variables of other meshes beside each other: the norm counts everything once."""
    for about, mine in meshes(world):
        alone = model_of()
        store, whole = fv.VarStore.from_module(mine), fv.VarStore.from_module(alone)
        opt, reference = adamw(store, max_norm=0.5), adamw(whole, max_norm=0.5)
        for step in range(2):
            give_exact(mine, alone, step)
            opt.step()
            reference.step()
            assert torch.equal(opt.grad_norm, reference.grad_norm), f"{about}: {opt.grad_norm}, {reference.grad_norm}"
        assert_whole(mine, opt, alone, reference, about)
        opt.zero_grad()
        reference.zero_grad()
        for step in range(2):  # one batch for all, as the ranks of tensor parallelism have
            losses = backward(mine, 0, step), backward(alone, 0, step)
            assert abs(float(losses[0] - losses[1])) < 1e-5, f"{about}, step {step}: {losses}"
            opt.step()
            reference.step()
            torch.testing.assert_close(opt.grad_norm, reference.grad_norm, rtol=1e-5, atol=0.0)
            opt.zero_grad()
            reference.zero_grad()


@on(2)
def check_sums_that_ranks_have_parts_of_are_added_up(world: World) -> None:
    """As the norms of sequence parallelism leave them."""
    mine, alone = columns_and_rows(model_of(), world.mesh), model_of()
    mine[0].second.weight.requires_grad_(False)
    opt, reference = adamw(fv.VarStore.from_module(mine)), adamw(fv.VarStore.from_module(alone))
    give_exact(mine, alone, 0)
    alone[0].second.weight.grad = mine[0].second.weight.grad = None
    weight, mesh = mine[0].first.weight, world.mesh
    part = alone[0].first.weight.grad / world.size
    weight.grad = DTensor.from_local(part, mesh, [Partial()], run_check=False)
    opt.step()
    reference.step()
    assert torch.equal(full(weight), alone[0].first.weight)
    assert torch.equal(full(mine[0].second.weight), alone[0].second.weight)


@on(2)
def check_a_shard_beside_its_mesh_is_shown_in_place(world: World) -> None:
    """What FSDP2 keeps on the CPU, of a mesh of GPUs, takes another way to a DTensor; it must lead to the same one."""
    mine = divided(model_of(), mesh=world.mesh)
    for whole in mine.parameters():
        local = whole.to_local().detach().double()
        made, usual = beside_mesh(whole, local), divided_as(whole, local)
        assert isinstance(made, DTensor)
        assert made.to_local().data_ptr() == local.data_ptr()
        assert (made.dtype, made.placements, made.shape) == (usual.dtype, usual.placements, usual.shape)
        assert torch.equal(made.full_tensor(), usual.full_tensor())


@on(2)
def check_a_scaler_over_shards(world: World) -> None:
    """An infinity that one rank has in its shard is skipped by all."""
    mine = divided(model_of(), mesh=world.mesh)
    opt = adamw(fv.VarStore.from_module(mine), max_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step, skipped in ((0, 0), (1, 1), (2, 1)):
        scaler.scale(nn.functional.mse_loss(mine(batch(world.rank, step)[0]), batch(world.rank, step)[1])).backward()
        if step == 1 and world.rank == 0:
            mine[0].first.weight.grad.to_local()[0, 0] = torch.inf
        before = [full(p).clone() for p in mine.parameters()]
        scaler.step(opt)
        scaler.update()
        assert int(opt.skipped) == skipped
        assert (step == 1) == all(torch.equal(full(p), q) for p, q in zip(mine.parameters(), before, strict=True))
        opt.zero_grad()
    assert scaler.get_scale() == 4.0


def check_values_and_state_take_a_share_of_the_memory(world: World) -> None:
    mine = divided(model_of(), mesh=world.mesh)
    store = fv.VarStore.from_module(mine)
    opt = adamw(store)
    give_exact(mine, model_of(), 0)
    opt.step()
    streams = dict(store.registry.streams.items())
    assert streams["values"].nbytes == 0
    held = sum(p.to_local().numel() for p in mine.parameters())
    state = [stream for name, stream in streams.items() if name.endswith("exp_avg")]
    assert state
    assert all(len(s.buffer) <= held + 64 * len(store) for s in state)
    assert store["0.first.weight"].value.data_ptr() == mine[0].first.weight.to_local().data_ptr()


@on(2)
def check_micro_batches_of_shards_add_up(world: World) -> None:
    alone, mine = model_of(), divided(model_of(), mesh=world.mesh)
    store, whole = fv.VarStore.from_module(mine), fv.VarStore.from_module(alone)
    opt, reference = adamw(store, max_norm=0.5), adamw(whole, max_norm=0.5)
    for step in range(2):
        for micro in range(2):
            give_exact(mine, alone, 10 * step + micro)
            store.accumulate()
            whole.accumulate()
            assert all(p.grad is None for p in mine.parameters())
        opt.step()
        reference.step()
    assert_whole(mine, opt, alone, reference, "micro-batches")


def check_nan_on_one_shard_is_skipped_by_all(world: World) -> None:
    mine = divided(model_of(), mesh=world.mesh)
    opt = adamw(fv.VarStore.from_module(mine), max_norm=0.5, skip_nonfinite=True)
    before = [full(p).clone() for p in mine.parameters()]
    give_exact(mine, model_of(), 0)
    if world.rank == world.size - 1:
        mine[0].first.weight.grad.to_local()[0, 0] = torch.nan
    opt.step()
    assert int(opt.skipped) == 1
    assert all(torch.equal(full(p), q) for p, q in zip(mine.parameters(), before, strict=True))


def check_sums_over_whole_variables_of_shards(world: World) -> None:
    """Trust ratios are those of whole variables, replicas counted once."""
    for _, mine in [("fsdp", divided(model_of(), mesh=world.mesh)), *meshes(world)]:
        alone = model_of()
        opt, reference = (fv.optim.LAMB(fv.VarStore.from_module(one), lr=0.1) for one in (mine, alone))
        for step in range(2):
            give_exact(mine, alone, step)
            opt.step()
            reference.step()
        for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(full(p), q, rtol=1e-6, atol=1e-7, msg=name)


@on(2)
def check_dcp_takes_shards_both_ways(world: World) -> None:
    """Saved by this library over FSDP2: loaded by torch.optim over FSDP2, by one process, and by this library."""
    mine, alone = divided(model_of(), mesh=world.mesh), model_of()
    opt, reference = adamw(fv.VarStore.from_module(mine)), adamw(fv.VarStore.from_module(alone))
    state = dict(zip(("model", "optim"), get_state_dict(mine, opt), strict=True))
    assert all(float(entry["step"]) == 0.0 for entry in state["optim"]["state"].values()), "no step was taken"
    for step in range(2):
        give_exact(mine, alone, step)
        opt.step()
        reference.step()
    path = world.folder / "shards"
    dcp.save(contents(mine, opt), checkpoint_id=path)

    theirs = divided(model_of(), mesh=world.mesh)
    torchs = torch.optim.AdamW(theirs.parameters(), lr=1e-3)
    load(theirs, torchs, path)
    assert_whole(theirs, torchs, alone, reference, "torch.optim over FSDP2")
    assert torchs.param_groups[0]["lr"] == LR

    again = divided(model_of(), mesh=world.mesh)
    other = adamw(fv.VarStore.from_module(again))
    load(again, other, path)
    assert_whole(again, other, alone, reference, "again")
    assert float(other.state[again[2].bias]["step"]) == 2.0
    give_exact(again, alone, 2)
    other.step()
    reference.step()
    assert_whole(again, other, alone, reference, "gone on")

    single = model_of()
    one = adamw(fv.VarStore.from_module(single))
    load(single, one, path, no_dist=True)
    give_exact_alone(single, 2)
    one.step()
    assert_whole(single, one, alone, reference, "one process")

    back = divided(model_of(), mesh=world.mesh)
    last = adamw(fv.VarStore.from_module(back))
    last.load_state_dict(reference.state_dict())  # of whole tensors
    for p, q in zip(back.parameters(), alone.parameters(), strict=True):
        p.data.copy_(again.get_parameter(next(n for n, r in alone.named_parameters() if r is q)).data)
    assert_whole(back, last, alone, reference, "whole state dict")


def give_exact_alone(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        param.grad = torch.randint(-16, 17, param.shape, generator=generator) / 8.0


def contents(model: Any, opt: Any) -> dict[str, Any]:
    return dict(zip(("model", "optim"), get_state_dict(model, opt), strict=True))


def load(model: Any, opt: Any, path: Any, **options: Any) -> None:
    state = contents(model, opt)
    dcp.load(state, checkpoint_id=path, **options)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])


@on(2)
def check_shards_that_move_are_followed(world: World) -> None:
    """FSDP2 may pad a shard in other memory before the first forward pass, and a forward leaves the root whole."""
    mine, alone = divided(model_of(), mesh=world.mesh), model_of()
    opt, reference = adamw(fv.VarStore.from_module(mine)), adamw(fv.VarStore.from_module(alone))
    for p in mine.parameters():
        p._local_tensor = p.to_local().detach().clone()  # as a policy of FSDP2's may do
    give_exact(mine, alone, 0)
    opt.step()
    reference.step()
    assert_whole(mine, opt, alone, reference, "other memory")
    mine(batch(0, 0)[0])
    assert not all(isinstance(p, DTensor) for p in mine.parameters())
    again = fv.VarStore.from_module(mine)
    assert all(isinstance(p, DTensor) for p in mine.parameters()), "put back before it was adopted"
    with pytest.raises(fv.FlatvarsError, match="adopted anew"):
        opt.step()
    converted = adamw(again)
    mine.double()
    give_exact_alone(alone, 1)
    with pytest.raises(fv.AliasError, match="converted, moved or sharded anew"):
        converted.step()


@on(2)
def check_shards_that_were_replaced_are_told(world: World) -> None:
    """`load_state_dict(assign=True)` leaves other DTensors in the module, and `to_empty()` other memory in the same."""
    mine, alone = divided(model_of(), mesh=world.mesh), model_of()
    opt, reference = adamw(fv.VarStore.from_module(mine)), adamw(fv.VarStore.from_module(alone))
    state = {name: value.detach().clone() for name, value in mine.state_dict().items()}
    mine.to_empty(device="cpu")
    mine.load_state_dict(state)
    give_exact(mine, alone, 0)
    opt.step()
    reference.step()
    assert_whole(mine, opt, alone, reference, "to_empty")
    mine.to_empty(device="cpu")
    held = opt.store["2.weight"]
    held.set_value(torch.ones_like(held.value))
    assert bool((mine[2].weight.to_local() == 1.0).all())
    for store in (opt.store, reference.store):
        fv.init.apply_(store, RULES, seed=3)
    assert_whole(mine, opt, alone, reference, "initialized where it lies now")
    mine.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    for call in (opt.step, opt.store.grad_norm, opt.store.accumulate):
        with pytest.raises(fv.AliasError, match=r"load_state_dict\(assign=True\)"):
            call()
    again = adamw(fv.VarStore.from_module(mine))
    fresh = model_of()
    anew = adamw(fv.VarStore.from_module(fresh))
    give_exact(mine, fresh, 1)
    again.step()
    anew.step()
    assert_whole(mine, again, fresh, anew, "adopted anew")


@on(2)
def check_what_shards_cannot_do_is_refused(world: World) -> None:
    mine = divided(model_of(), mesh=world.mesh)
    with pytest.raises(fv.SpecError, match="dtype= was given"):
        fv.VarStore.from_module(mine, dtype=torch.bfloat16)
    for call in (lambda: adamw(mine.parameters()), lambda: fv.VarStore().add_module(mine)):
        with pytest.raises(fv.SpecError, match=r"VarStore\.from_module\(module\)"):
            call()
    store = fv.VarStore.from_module(mine)
    opt = adamw(store)
    for call in (lambda: store.save(world.folder / "no.safetensors"), lambda: store.snapshot(opt)):
        with pytest.raises(fv.FlatvarsError, match=r"torch\.distributed\.checkpoint"):
            call()
    with pytest.raises(fv.FlatvarsError, match="no flat buffer"):
        _ = store.values
    with pytest.raises(fv.FlatvarsError, match="convert the model first"):
        store.bfloat16()
    with pytest.raises(fv.FlatvarsError, match="shared out over ranks"):
        copy.deepcopy(opt)
    give_exact(mine, model_of(), 0)
    with pytest.raises(fv.SpecError, match="values= was given"):
        fv.VarStore.from_module(mine, values="split")


@on(4)
def check_columns_that_two_meshes_divide_are_refused_with_a_way_out(world: World) -> None:
    """`fully_shard` that was told to divide the axis of tensor parallelism; and the same as it does by itself."""
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def made(axis: int | None) -> nn.Sequential:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
        parallelize_module(model, both["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        cut = model[1].weight
        place = None if axis is None else lambda param: Shard(axis) if param is cut else None
        return fully_shard(model, mesh=both["data"], shard_placement_fn=place)

    with pytest.raises(fv.FlatvarsError, match=r"dimension 1 in more than one way.* or returns Shard\(0\)"):
        fv.VarStore.from_module(made(1))
    for axis in (None, 0):
        mine = made(axis)
        before = full(mine[1].weight).clone()
        opt = adamw(fv.VarStore.from_module(mine))
        mine(torch.ones(2, 8)).sum().backward()
        opt.step()
        assert not torch.equal(full(mine[1].weight), before)


def check_first_values_of_shards_are_those_of_one_process(world: World) -> None:
    """Drawn by (seed, name, index), from the meta device too, whatever a module was divided by."""
    alone = model_of()
    fv.init.apply_(fv.VarStore.from_module(alone, seed=5), RULES)
    with torch.device("meta"):
        late = divided(nn.Sequential(Block(), Block(), nn.Linear(9, 5)), mesh=world.mesh)
    ways = [("fsdp", divided(model_of(), mesh=world.mesh)), ("meta", late.to_empty(device="cpu")), *meshes(world)]
    for about, model in ways:
        store = fv.VarStore.from_module(model, init=RULES, seed=5)
        for (name, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert torch.equal(full(mine), theirs), f"{about}: {name}"
    with pytest.raises(fv.InitError, match="cannot be filled by"):
        fv.init.apply_(store, {"*.weight": fv.init.orthogonal(), "*": None})


@on(2)
def check_numbers_that_a_step_over_shards_tells(world: World) -> None:
    """Replicas count once, and what is empty here is whole elsewhere."""
    for _, mine in [("fsdp", divided(model_of(), mesh=world.mesh)), *meshes(world)]:
        alone = model_of()
        opt, reference = (adamw(fv.VarStore.from_module(one), stats=True, max_norm=0.5) for one in (mine, alone))
        for step in range(2):
            give_exact(mine, alone, step)
            opt.step()
            reference.step()
        assert_same_numbers(opt.stats(), reference.stats())


def check_shards_are_rounded_and_clipped_as_one_process(world: World) -> None:
    """Draws go by positions in whole variables, where shards begin at multiples of 16 elements; and so do units of a
    norm, those too that a border cuts."""

    def made(even: bool) -> nn.Sequential:
        torch.manual_seed(4)
        sizes = ((32, 48), (48, 32), (16, 128)) if even else ((9, 47), (47, 19), (19, 300), (1, 3))
        return nn.Sequential(*(nn.Linear(*pair, bias=not even) for pair in sizes))

    for even in (True, False):
        assert_clipped(fully_shard(made(even), mesh=world.mesh), made(even), even)


def assert_clipped(mine: nn.Module, alone: nn.Module, rounded: bool) -> None:
    options: Any = {"state_dtype": torch.bfloat16 if rounded else None, "max_norm": 0.5}
    opt, reference = (adamw(fv.VarStore.from_module(one), **options) for one in (mine, alone))
    generator = torch.Generator().manual_seed(2)
    for step in range(3):
        for p, q in zip(mine.parameters(), alone.parameters(), strict=True):
            q.grad = torch.randn(q.shape, generator=generator)
            p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements, src_data_rank=None)
        opt.step()
        reference.step()
        assert torch.equal(opt.grad_norm, reference.grad_norm), step
    for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(full(p), q), name
        assert torch.equal(full(opt.state[p]["exp_avg_sq"]), reference.state[q]["exp_avg_sq"]), name


@on(2)
def check_averages_of_shards_in_the_place_of_values(world: World) -> None:
    mine, alone = divided(model_of(), mesh=world.mesh), model_of()
    stores = [fv.VarStore.from_module(one) for one in (mine, alone)]
    opt, reference = (averaged(store, max_norm=0.5) for store in stores)
    give_exact(mine, alone, 0)
    for turn in ("step", "eval", "train"):
        for one in (opt, reference):
            getattr(one, turn)()
        for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
            assert torch.equal(full(p), q), f"{turn}: {name}"
    opt, reference = (adamw(store, max_norm=0.5) for store in stores)
    averages = [fv.EMA(one, decay=0.5) for one in (opt, reference)]
    for one in (opt, reference):
        one.step()
    with averages[0].swapped(), averages[1].swapped():
        for (name, p), q in zip(mine.named_parameters(), alone.parameters(), strict=True):
            assert torch.equal(full(p), q), f"average of {name}"


@on(2)
def check_an_asynchronous_save_of_shards(world: World) -> None:
    mine, alone = divided(model_of(), mesh=world.mesh), model_of()
    opt, reference = adamw(fv.VarStore.from_module(mine)), adamw(fv.VarStore.from_module(alone))
    give_exact(mine, alone, 0)
    opt.step()
    reference.step()
    path, group = world.folder / "async-shards", dist.new_group(backend="gloo")
    future = dcp.async_save(contents(mine, opt), checkpoint_id=path, process_group=group)
    give_exact(mine, model_of(), 1)
    opt.step()
    future.result()
    again = divided(model_of(), mesh=world.mesh)
    other = adamw(fv.VarStore.from_module(again))
    load(again, other, path)
    assert_whole(again, other, alone, reference, "as it was when it was saved")
