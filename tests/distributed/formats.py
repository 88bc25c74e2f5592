"""Checks of states that are stored in formats of blocks where `fully_shard` and tensor parallelism divide variables."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

import flatvars as fv
from flatvars.distributed.shards import cuts_units

from .launch import World, on
from .shards import contents, full, give_exact, give_exact_alone, load

# Rows of whole blocks, also with nothing for some ranks; what every border cuts; and between them, what some do.
SHAPES = ((8, 128), (130,), (6, 256), (5, 77), (1, 384), (16, 32), (3,))
CUT = {2: {1, 3, 6}, 3: {1, 3, 5, 6}, 4: {1, 3, 6}}
FORMATS: tuple[Any, ...] = ("root8", {"exp_avg": "root8", "exp_avg_sq": "log4"})
STEPS = 2


class Blocks(nn.Module):
    """Parameters alone: gradients are set."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, shape in enumerate(SHAPES):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape, generator=generator)))


def adamw(module: nn.Module, formats: Any, **options: Any) -> fv.optim.AdamW:
    store = fv.VarStore.from_module(module)
    return fv.optim.AdamW(store, lr=0.02, weight_decay=0.1, max_norm=0.5, state_format=formats, **options)


def warm() -> None:
    """Compiles, before the ranks are forked."""
    for formats in FORMATS:
        opt = adamw(alone := Blocks(), formats)
        give_exact_alone(alone, 0)
        opt.step()


def in_float32(state: Tensor) -> Tensor:
    whole = full(state)
    assert whole.dtype == torch.float32
    return whole


def assert_stored_alike(mine: nn.Module, opt: Any, coded: Any, plain: Any, about: str) -> None:
    """Values, and the optimizer's states if it is given, are those of one process: in the format, or plain."""
    for name, p in mine.named_parameters():
        reference = plain if cuts_units(p) else coded
        truth = reference.store[name].param
        assert torch.equal(full(p), truth), f"{about}: {name}"
        for key in ("exp_avg", "exp_avg_sq") if opt is not None else ():
            assert torch.equal(in_float32(opt.state[p][key]), reference.state[truth][key]), f"{about}: {key} of {name}"


def step_all(step: int, mine: nn.Module, opt: Any, *others: tuple[nn.Module, Any]) -> None:
    """The same gradients for all."""
    for module, _ in others:
        give_exact(mine, module, step)
    for each in (opt, *(reference for _, reference in others)):
        each.step()


# Checks ---------------------------------------------------------------------------------------------------------------


@on(2, 3, 4)
def check_blocks_of_shards_are_those_of_one_process(world: World) -> None:
    """What no border cuts has the codes of one process; what one cuts has states in float32, and no bit of a mesh."""
    for formats in FORMATS[: 1 if world.size == 4 else None]:
        mine, alone, other = fully_shard(Blocks(), mesh=world.mesh), Blocks(), Blocks()
        opt, coded, plain = adamw(mine, formats), adamw(alone, formats), adamw(other, None)
        assert {i for i, p in enumerate(mine.parameters()) if cuts_units(p)} == CUT[world.size]
        for step in range(STEPS):
            step_all(step, mine, opt, (alone, coded), (other, plain))
            assert torch.equal(opt.grad_norm, coded.grad_norm)
            assert_stored_alike(mine, opt, coded, plain, f"{formats}, step {step}")
        held = {name: stream for (name, _), stream in opt.capture().streams.items()}
        assert held["exp_avg"].format is not None
        assert held["exp_avg.float32"].buffer.dtype == torch.float32
        some = sum(p.to_local().numel() for p in mine.parameters() if cuts_units(p))
        assert held["exp_avg.float32"].nbytes <= 4 * (some + 128 * len(CUT[world.size])), "those alone"
        # What is written to, in whole tensors or in shards, is stored; records hold both kinds.
        record = opt.capture()
        for one in (opt, coded, plain):
            params = list(one.param_groups[0]["params"])
            for i in (0, 1):
                one.state[params[i]]["exp_avg"].zero_()
        step_all(STEPS, mine, opt, (alone, coded), (other, plain))
        assert_stored_alike(mine, opt, coded, plain, f"{formats}, written to")
        opt.restore(record)


@on(2)
def check_columns_of_whole_blocks_keep_them(world: World) -> None:
    def made() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(512, 4, bias=False), nn.Linear(96, 4, bias=False))

    plan = {"0": RowwiseParallel(), "1": RowwiseParallel()}
    mine, alone = parallelize_module(made(), world.mesh, plan), made()
    assert [p.placements for p in mine.parameters()] == [(Shard(1),)] * 2
    assert [cuts_units(p) for p in mine.parameters()] == [False, True]
    opt, coded, plain = adamw(mine, "root8"), adamw(alone, "root8"), adamw(other := made(), None)
    for step in range(STEPS):
        step_all(step, mine, opt, (alone, coded), (other, plain))
    assert_stored_alike(mine, opt, coded, plain, "columns")


@on(2)
def check_checkpoints_of_formats_over_shards(world: World) -> None:
    """torch's float32 layout: from 2 ranks to 1 and back, and on; the same numbers, and the same steps."""
    formats = FORMATS[1]
    mine, alone, other = fully_shard(Blocks(), mesh=world.mesh), Blocks(), Blocks()
    opt, coded, plain = adamw(mine, formats), adamw(alone, formats), adamw(other, None)
    step_all(0, mine, opt, (alone, coded), (other, plain))
    path = world.folder / "formats"
    dcp.save(contents(mine, opt), checkpoint_id=path)
    assert_stored_alike(mine, opt, coded, plain, "saved")

    theirs = torch.optim.AdamW(fully_shard(module := Blocks(1), mesh=world.mesh).parameters(), lr=1.0)
    load(module, theirs, path)
    assert_stored_alike(module, theirs, coded, plain, "torch.optim")

    again = fully_shard(Blocks(1), mesh=world.mesh)
    one = adamw(again, formats)
    load(again, one, path)
    assert_stored_alike(again, one, coded, plain, "again")
    step_all(1, again, one, (alone, coded), (other, plain))
    assert_stored_alike(again, one, coded, plain, "gone on")

    # One process, which has blocks of all: what was cut is encoded when it is loaded.
    single = Blocks(2)
    whole = adamw(single, formats)
    load(single, whole, path, no_dist=True)
    back = world.folder / f"back.{world.rank}"
    dcp.save(contents(single, whole), checkpoint_id=back, no_dist=True)
    last = fully_shard(Blocks(3), mesh=world.mesh)
    end = adamw(last, formats)
    load(last, end, back, no_dist=True)
    for (name, p), q in zip(last.named_parameters(), single.parameters(), strict=True):
        assert torch.equal(full(p), q), name
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(in_float32(end.state[p][key]), whole.state[q][key]), f"{key} of {name}"


@on(2)
def check_formats_of_matrices_over_shards(world: World) -> None:
    """Muon's momentum is float32 wherever it lies; what AdamW steps beside it is in blocks, or not."""

    def muon(module: nn.Module, formats: Any) -> fv.optim.Muon:
        return fv.optim.Muon(fv.VarStore.from_module(module), lr=0.02, muon=["p0", "p2", "p3"], state_format=formats)

    mine, alone, other = fully_shard(Blocks(), mesh=world.mesh), Blocks(), Blocks()
    opt, coded, plain = muon(mine, "root8"), muon(alone, "root8"), muon(other, None)
    for step in range(STEPS):
        step_all(step, mine, opt, (alone, coded), (other, plain))
    for name, p in mine.named_parameters():
        truth = (plain if cuts_units(p) else coded).store[name].param
        assert torch.equal(full(p), truth), name


@on(2)
def check_formats_beside_averages(world: World) -> None:
    """States in formats and plain ones of one variable, in one launch; and an optimizer of cut variables alone."""
    mine, alone, other = fully_shard(Blocks(), mesh=world.mesh), Blocks(), Blocks()
    opt, coded, plain = adamw(mine, "root8"), adamw(alone, "root8"), adamw(other, None)
    averages = [fv.EMA(one, decay=0.5) for one in (opt, coded, plain)]
    step_all(0, mine, opt, (alone, coded), (other, plain))
    with averages[0].swapped(), averages[1].swapped(), averages[2].swapped():
        assert_stored_alike(mine, None, coded, plain, "averages")
    cut = [mine.p1, mine.p3]
    some = fv.optim.AdamW(cut, lr=0.02, weight_decay=0.1, state_format="root8")
    rest = fv.optim.AdamW([other.p1, other.p3], lr=0.02, weight_decay=0.1)
    step_all(1, mine, some, (other, rest))
    assert all(torch.equal(full(p), q) for p, q in zip(cut, (other.p1, other.p3), strict=True))


@on(2)
def check_which_borders_cut_blocks(world: World) -> None:
    """By the shape of the whole, the placements and the mesh alone."""
    mesh = world.mesh
    for shape, placement, cut in (
        ((4, 128), Shard(0), False),
        ((4, 64), Shard(0), False),  # two rows each
        ((6, 64), Shard(0), True),
        ((3, 64), Shard(0), False),  # the border lies behind the first two rows
        ((1, 64), Shard(0), False),  # all of it is on one rank
        ((256,), Shard(0), False),
        ((250,), Shard(0), True),
        ((4, 256), Shard(1), False),
        ((4, 320), Shard(1), True),  # rows are no whole blocks
        ((1, 320), Shard(1), True),
        ((1, 384), Shard(1), True),
        ((2, 2, 128), Shard(1), False),
        ((6, 64), Replicate(), False),
        ((0, 64), Shard(0), False),
    ):
        whole = distribute_tensor(torch.zeros(shape), mesh, [placement], src_data_rank=None)
        assert isinstance(whole, DTensor)
        assert cuts_units(whole) is cut, f"{shape} divided as {placement}"
    assert not cuts_units(torch.zeros(250))
