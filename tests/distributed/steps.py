"""Checks of sharing state over ranks: every step beside that of one process with the same averaged gradients."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.memory.piece import Piece
from flatvars.optim.base import Optimizer
from tests.support.host_sync import no_waiting_upload

from .launch import World, on

# Of all kinds: cut by every border, in several groups of 1,024 units, empty, of one element, and more than one dtype.
SHAPES = ((7, 5), (300, 501), (), (0, 3), (33,), (260, 129), (4, 3, 5, 5))
STEPS = 4
DTYPES = (torch.float32, torch.bfloat16)
# Of values, and of states.
FORMATS: tuple[tuple[dict[str, Any], Any], ...] = (
    ({}, "root8"),
    ({"dtype": torch.bfloat16, "values": "split"}, {"exp_avg": "root8", "exp_avg_sq": "log4"}),
)


class Net(nn.Module):
    """Parameters alone: gradients are set."""

    def __init__(self, seed: int = 0, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for i, shape in enumerate(SHAPES):
            value = torch.randn(shape, generator=generator).to(dtypes[i % len(dtypes)])
            if len(shape) == 4:
                value = value.to(memory_format=torch.channels_last)
            self.register_parameter(f"p{i}", nn.Parameter(value))
        self.register_buffer("seen", torch.full((3,), float(seed)))


def gradients(rank: int, step: int, absent: tuple[tuple[int, int], ...] = ()) -> list[Tensor | None]:
    """Of one rank and step: eighths, whose mean over 2, 3 or 4 ranks is exact; None at (rank, number) in `absent`."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    found: list[Tensor | None] = []
    for i, shape in enumerate(SHAPES):
        grad = 3.0 * torch.randint(-8, 9, shape, generator=generator) / 8.0
        found.append(None if (rank, i) in absent or (-1, i) in absent else grad)
    return found


def mean(world: World, step: int, absent: tuple[tuple[int, int], ...]) -> list[Tensor | None]:
    """Over ranks: None where no rank has one, and else what is not there is zero."""
    everyone = [gradients(rank, step, absent) for rank in range(world.size)]
    found: list[Tensor | None] = []
    for grads in zip(*everyone, strict=True):
        there = [grad for grad in grads if grad is not None]
        found.append(sum(there[1:], there[0]) / world.size if there else None)
    return found


def give(module: nn.Module, grads: list[Tensor | None]) -> None:
    """As autograd would: into `.grad`, or onto it."""
    for param, grad in zip(module.parameters(), grads, strict=True):
        if grad is None:
            continue
        if param.grad is None:
            param.grad = grad.to(param.dtype).clone(memory_format=torch.preserve_format)
        else:
            param.grad.add_(grad.to(param.dtype))


def assert_same(mine: fv.VarStore, opt: Optimizer, whole: fv.VarStore, reference: Optimizer, about: str) -> None:
    """Values of every variable, and this rank's part of every state, bit for bit."""
    for name in whole:
        assert torch.equal(mine[name].value, whole[name].value), f"{about}: {name}"
        if not whole[name].requires_grad:
            continue
        state, truth = opt.state[mine[name].param], reference.state[whole[name].param]
        taken = truth.get("step")  # Muon's matrices have none, nor has what took no step
        counted = state.get("step", 0.0) if taken is None else state["step"]
        assert float(counted) == float(taken or 0.0), f"{about}: step of {name}"
        for key, piece in state.items():
            # Without a step there is no truth: shared state is shown from the start.
            for box in piece.boxes() if isinstance(piece, Piece) and key in truth else ():
                part = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))
                assert torch.equal(piece.view_of(box), truth[key][part]), f"{about}: {key} of {name}"


def warm() -> None:
    """Compiles what the checks share, before the ranks are forked."""
    fv.init.apply_(fv.VarStore.from_module(nn.Linear(2, 2)), {"*": fv.init.normal(0.0, 0.5)}, seed=1)
    for kind, dtypes in ((adamw, DTYPES), *((kind, DTYPES[:1]) for kind in (adamw, averaged, fv.optim.LAMB))):
        net = Net(dtypes=dtypes)
        store = fv.VarStore.from_module(net)
        opt = kind(store, max_norm=0.5)
        give(net, gradients(0, 0))
        opt.step()
        store.accumulate()
        store.accumulate(gradients(0, 0))
        if kind is adamw and dtypes == DTYPES[:1]:
            average = fv.EMA(opt, decay=0.5)
            opt.step()
            with average.swapped():
                pass
        if kind is averaged:
            opt.eval()
            opt.train()

    net = Net()
    opt = adamw(fv.VarStore.from_module(net), stats=True, max_norm=0.5)
    give(net, gradients(0, 0))
    opt.step()
    for stored, formats in FORMATS:
        net = Net()
        opt = adamw(fv.VarStore.from_module(net, **stored), max_norm=0.5, state_format=formats)
        give(net, gradients(0, 0))
        opt.step()
    for values in ("stochastic", "split"):
        net = Net()
        opt = adamw(fv.VarStore.from_module(net, dtype=torch.bfloat16, values=values))
        give(net, gradients(0, 0))
        opt.step()


def adamw(store: Any, **options: Any) -> fv.optim.AdamW:
    return fv.optim.AdamW(store, lr=0.02, weight_decay=0.1, **options)


def averaged(store: Any, **options: Any) -> fv.optim.ScheduleFreeSGD:
    return fv.optim.ScheduleFreeSGD(store, lr=0.1, **options)


# Checks ---------------------------------------------------------------------------------------------------------------


@on(2, 3, 4)
def check_steps_are_those_of_one_process(world: World) -> None:
    absent = ((0, 1), (-1, 4)), (), ((world.size - 1, 0),), ((-1, 5),)
    cases = [*itertools.product((adamw,), ("gather", "views"), (None, 0.5)), (averaged, "gather", 0.5)]
    for kind, mode, clip in cases if world.size != 3 else cases[1:2]:
        net, alone = Net(), Net()
        store = fv.VarStore.from_module(net, mesh=world.mesh, grads=mode)
        whole = fv.VarStore.from_module(alone, grads=mode)
        opt, reference = kind(store, max_norm=clip), kind(whole, max_norm=clip)
        for step in range(STEPS):
            give(net, gradients(world.rank, step, absent[step]))
            give(alone, mean(world, step, absent[step]))
            opt.step()
            reference.step()
            about = f"{kind.__name__}, {mode}, clip {clip}, step {step}"
            if clip is not None:
                assert torch.equal(opt.grad_norm, reference.grad_norm), about
            assert_same(store, opt, whole, reference, about)
            opt.zero_grad()
            reference.zero_grad()
        store.check()


def check_each_rank_keeps_its_share_alone(world: World) -> None:
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store)
    give(net, gradients(world.rank, 0))
    opt.step()
    streams = opt.capture().streams
    numel = store.regions[0].trainable_numel
    assert {key[0] for key in streams} == {"exp_avg", "exp_avg_sq"}
    assert all(stream.buffer.numel() * world.size == numel for stream in streams.values())
    # Variables begin on multiples of 128 elements, and ranges end on them.
    assert numel <= sum(-(-p.numel() // 128) * 128 for p in net.parameters()) + 128 * world.size


def check_the_first_rank_says_how_to_begin(world: World) -> None:
    net = Net(seed=world.rank)
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    expected = Net(seed=0)
    for name, value in expected.state_dict().items():
        assert torch.equal(store[name].value, value), name


@on(2)
def check_first_values_are_those_of_one_process(world: World) -> None:
    """Drawn by (seed, name, index): the ranges of ranks are no part of it."""
    rules = {"*": fv.init.normal(0.0, 0.5)}
    stores = []
    for mesh in (world.mesh, None):
        with torch.device("meta"):
            module = nn.Sequential(nn.Linear(33, 70), nn.Linear(70, 5))
        stores.append(fv.VarStore.from_module(module, "cpu", init=rules, seed=3, mesh=mesh))
    mine, whole = stores
    assert all(torch.equal(mine[name].value, whole[name].value) for name in whole)
    assert float(whole["0.weight"].value.std()) > 0.4


def check_micro_batches_add_up(world: World) -> None:
    for mode in ("gather", "views"):
        net, alone = Net(), Net()
        store, whole = fv.VarStore.from_module(net, mesh=world.mesh, grads=mode), fv.VarStore.from_module(alone)
        opt, reference = adamw(store, max_norm=0.5), adamw(whole, max_norm=0.5)
        for step in range(2):
            for micro in range(2):
                give(net, gradients(world.rank, 10 * step + micro, ((0, 2),)))
                give(alone, mean(world, 10 * step + micro, ((0, 2),)))
                store.accumulate()
                whole.accumulate()
            opt.step()
            reference.step()
            assert_same(store, opt, whole, reference, f"{mode}, step {step}")
            if step == 0:  # without zeroing: what a step has used lies there, and the next cycle overwrites it
                opt.zero_grad() if mode == "views" else None
                reference.zero_grad() if mode == "views" else None


@on(2)
def check_a_second_step_uses_the_same_gradients(world: World) -> None:
    for gathered in (False, True):
        net, alone = Net(), Net()
        store, whole = fv.VarStore.from_module(net, mesh=world.mesh), fv.VarStore.from_module(alone)
        opt, reference = adamw(store), adamw(whole)
        give(net, gradients(world.rank, 0))
        give(alone, mean(world, 0, ()))
        for one in (store, whole) if gathered else ():
            one.accumulate()
        for _ in range(2):
            opt.step()
            reference.step()
        assert_same(store, opt, whole, reference, f"gathered {gathered}")
        mine = gradients(world.rank, 0)
        assert all(torch.equal(v.grad, g) for v, g in zip(store.trainable_variables(), mine, strict=True))


@on(2)
def check_no_step_waits_for_what_it_uploads(world: World) -> None:
    makers = (adamw, fv.optim.Muon, fv.optim.Adafactor, fv.optim.LAMB)
    for make, mode, cap in itertools.product(makers, ("gather", "views"), (None, 0.05)):
        net = Net(dtypes=DTYPES)
        store = fv.VarStore.from_module(net, mesh=world.mesh, grads=mode, bucket_cap_mb=cap)
        opt = make(store, max_norm=0.5)
        for step in range(2):
            before = net.p1.detach().clone()
            give(net, gradients(world.rank, step))
            with no_waiting_upload() if step else nullcontext():  # the first one makes plans
                opt.step()
            assert not torch.equal(net.p1, before)
            opt.zero_grad()


def check_nan_on_one_rank_is_skipped_by_all(world: World) -> None:
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store, skip_nonfinite=True)
    before = store.values.clone()
    grads = gradients(world.rank, 0)
    if world.rank == 0:
        grads[1][3, 5] = torch.nan
    give(net, grads)
    opt.step()
    assert torch.equal(store.values, before)
    assert int(opt.skipped) == 1
    assert not bool(opt.grad_norm.isfinite())
    opt.zero_grad()
    give(net, gradients(world.rank, 0))
    opt.step()
    assert int(opt.skipped) == 1
    assert float(opt.state[net.p1]["step"]) == 1.0


def check_a_scaler_of_each_rank(world: World) -> None:
    """Scales may come to differ: gradients are unscaled by each rank's own before they are averaged."""
    for mode in ("gather", "views"):
        net, alone = Net(), Net()
        store = fv.VarStore.from_module(net, mesh=world.mesh, grads=mode)
        opt = adamw(store, max_norm=0.5)
        whole = fv.VarStore.from_module(alone)
        reference = adamw(whole, max_norm=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (4 + world.rank))
        for step in range(3):
            scale = scaler.scale(torch.ones(()))
            grads = [None if g is None else g * scale for g in gradients(world.rank, step)]
            if step == 1 and world.rank == world.size - 1:
                grads[0][0, 0] = torch.inf
            give(net, grads)
            scaler.step(opt)
            scaler.update()
            if step != 1:
                give(alone, mean(world, step, ()))
                reference.step()
            assert_same(store, opt, whole, reference, f"{mode}, step {step}")
            opt.zero_grad()
            reference.zero_grad()
        assert int(opt.skipped) == 1


def check_strict_steps_ask_all_ranks(world: World) -> None:
    net = Net()
    opt = adamw(fv.VarStore.from_module(net, mesh=world.mesh))
    give(net, gradients(world.rank, 0, ((0, 1),)))
    opt.step(strict=True)  # rank 1 has what rank 0 has not
    opt.zero_grad()
    give(net, gradients(world.rank, 0, ((-1, 1),)))
    with pytest.raises(fv.GradientError, match="p1"):
        opt.step(strict=True)


def check_ranks_that_differ_are_told_how(world: World) -> None:
    net = Net()
    if world.rank == 1:
        net.p0 = nn.Parameter(torch.zeros(3, 3))
        net.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(fv.DisagreementError, match=r"p0: \(7, 5\).* on rank 0.*\(3, 3\).* on rank 1; extra: nothing"):
        fv.VarStore.from_module(net, mesh=world.mesh)
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store)
    if world.rank == 1:
        store.freeze("p1")
    give(net, gradients(world.rank, 0))
    with pytest.raises(fv.DisagreementError, match=r"p1: .*trained on rank 0.*frozen on rank 1"):
        opt.step()
    store.unfreeze()
    opt.step()
    before = store.values.clone()
    opt.param_groups[0]["lr"] = 0.5 if world.rank == 1 else 0.25
    with pytest.raises(fv.DisagreementError, match=r"lr of param group 0: 0\.25 on rank 0.*0\.5 on rank 1"):
        opt.step()
    assert torch.equal(store.values, before)


@on(2)
def check_what_an_optimizer_is_made_with_is_compared(world: World) -> None:
    net = Net()
    opt = adamw(fv.VarStore.from_module(net, mesh=world.mesh), state_format="root8" if world.rank else None)
    give(net, gradients(world.rank, 0))
    with pytest.raises(fv.DisagreementError, match=r"state_format: None on rank 0, 'root8' on rank 1"):
        opt.step()


@on(2)
def check_what_a_class_looks_at_before_a_step_is_looked_at(world: World) -> None:
    net = Net()
    opt = fv.optim.Rprop(fv.VarStore.from_module(net, mesh=world.mesh), lr=0.01)
    give(net, gradients(world.rank, 0))
    opt.step()
    opt.param_groups[0]["lr"] = 0.1
    with pytest.warns(UserWarning, match="Rprop reads lr in the first step"):
        opt.step()


@on(2)
def check_what_one_rank_cannot_do_is_refused(world: World) -> None:
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store)
    give(net, gradients(world.rank, 0))
    opt.step()
    state = opt.state[net.p1]["exp_avg"]
    with pytest.raises(NotImplementedError, match="shared out over ranks"):
        state.sum()
    with pytest.raises(fv.FlatvarsError, match=r"torch\.distributed\.checkpoint"):
        store.save(world.folder / "refused.safetensors", opt)
    with pytest.raises(fv.FlatvarsError, match="from rank to rank"):
        store.bfloat16()
    with pytest.raises(ValueError, match="one dimension"):
        fv.VarStore.from_module(Net(), mesh=two_axes(world))


@on(2)
def check_uploaded_numbers_reach_what_a_step_launches(world: World) -> None:
    """A captured step reads the table of this rank's share, where it lies, and not that of the whole plans."""
    net = Net()
    opt = adamw(fv.VarStore.from_module(net, mesh=world.mesh))
    opt.upload_hyperparameters()  # also before a first step
    give(net, gradients(world.rank, 0))
    opt.step()
    tables = [share.part.plan.hyper._table for share in opt._divided.shares]
    assert all(float(table[0, 1]) == pytest.approx(0.02) for table in tables)
    opt.param_groups[0]["lr"] = 0.25
    opt.upload_hyperparameters()
    assert all(float(table[0, 1]) == 0.25 for table in tables)


@on(2)
def check_numbers_that_a_step_tells(world: World) -> None:
    """Of whole variables, added up when they are read."""
    net, alone = Net(), Net()
    store, whole = fv.VarStore.from_module(net, mesh=world.mesh), fv.VarStore.from_module(alone)
    opt, reference = (adamw(one, stats=True, max_norm=0.5) for one in (store, whole))
    for step in range(2):
        give(net, gradients(world.rank, step, ((-1, 4),)))
        give(alone, mean(world, step, ((-1, 4),)))
        for one in (opt, reference):
            one.step()
            one.zero_grad()
    assert_same_numbers(opt.stats(), reference.stats())


def assert_same_numbers(mine: Any, truth: Any) -> None:
    """To the last bits of sums over variables, which come in another order."""
    assert list(mine) == list(truth)
    for name, numbers in truth.items():
        for column, number in numbers.items():
            torch.testing.assert_close(mine[name][column], number, rtol=1e-6, atol=1e-12, equal_nan=True)


def check_sums_over_whole_variables(world: World) -> None:
    """Of rules that take statistics; of what lies on one rank alone or is cut by a border."""
    net, alone = Net(), Net()
    store, whole = fv.VarStore.from_module(net, mesh=world.mesh), fv.VarStore.from_module(alone)
    opt, reference = (fv.optim.LAMB(one, max_norm=0.5, skip_nonfinite=True) for one in (store, whole))
    for step in range(3):
        grads = gradients(world.rank, step, ((-1, 4),))
        if step == 1 and world.rank == 0:
            grads[0][0, 0] = torch.nan
        give(net, grads)
        if step != 1:
            give(alone, mean(world, step, ((-1, 4),)))
            reference.step()
        opt.step()
        opt.zero_grad()
        reference.zero_grad()
        assert_same(store, opt, whole, reference, f"step {step}")


def check_formats_of_blocks(world: World) -> None:
    """Blocks of 128 begin with variables, and ranges on blocks: codes and scales are those of one process."""
    for stored, formats in FORMATS[: 1 if world.size > 2 else None]:
        net, alone, values = Net(), Net(), stored.get("values")
        store, whole = fv.VarStore.from_module(net, mesh=world.mesh, **stored), fv.VarStore.from_module(alone, **stored)
        opt, reference = (adamw(one, state_format=formats, max_norm=0.5) for one in (store, whole))
        for step in range(2):
            give(net, gradients(world.rank, step, ((-1, 4),)))
            give(alone, mean(world, step, ((-1, 4),)))
            for one in (opt, reference):
                one.step()
                one.zero_grad()
            assert_same(store, opt, whole, reference, f"{values}, {formats}, step {step}")
        for name in whole if values == "split" else ():
            assert torch.equal(store.float32(name), whole.float32(name)), name
        written = opt.state[net.p1]["exp_avg"]
        written.zero_()  # what is shown is decoded, and taken back
        reference.state[alone.p1]["exp_avg"].zero_()
        for module, one in ((net, opt), (alone, reference)):
            give(module, gradients(0, 9))
            one.step()
        assert_same(store, opt, whole, reference, f"{values}, {formats}, written to")


@on(2)
def check_values_are_rounded_as_in_one_process(world: World) -> None:
    """At random, by draws that no rank shows in; the mean of equal gradients is exact. And split ones are exact."""
    for values in ("stochastic", "split"):
        net, alone = Net(seed=world.rank), Net()
        stored: Any = {"dtype": torch.bfloat16, "values": values}
        store, whole = fv.VarStore.from_module(net, mesh=world.mesh, **stored), fv.VarStore.from_module(alone, **stored)
        opt, reference = adamw(store), adamw(whole)
        for step in range(2):
            for module, one in ((net, opt), (alone, reference)):
                give(module, [None if grad is None else grad.bfloat16() for grad in gradients(0, step)])
                one.step()
                one.zero_grad()
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters(), strict=True)), values
        for name in whole if values == "split" else ():
            assert torch.equal(store.float32(name), whole.float32(name)), name


@on(2)
def check_averages_of_schedule_free(world: World) -> None:
    net, alone = Net(), Net()
    store, whole = fv.VarStore.from_module(net, mesh=world.mesh), fv.VarStore.from_module(alone)
    opt, reference = (averaged(one) for one in (store, whole))
    for step in range(2):
        give(net, gradients(world.rank, step))
        give(alone, mean(world, step, ()))
        for one in (opt, reference):
            one.step()
            one.zero_grad()
    for turn in ("eval", "train"):
        getattr(opt, turn)()
        getattr(reference, turn)()
        assert_same(store, opt, whole, reference, turn)


def check_averages_in_the_place_of_values(world: World) -> None:
    net, alone = Net(), Net()
    store, whole = fv.VarStore.from_module(net, mesh=world.mesh), fv.VarStore.from_module(alone)
    opt, reference = adamw(store), adamw(whole)
    mine, truth = fv.EMA(opt, decay=0.5), fv.EMA(reference, decay=0.5)
    give(net, gradients(world.rank, 0))
    give(alone, mean(world, 0, ()))
    opt.step()
    reference.step()
    with mine.swapped(), truth.swapped():
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters(), strict=True))
    assert_same(store, opt, whole, reference, "swapped back")


def check_several_dtypes_and_frozen_variables(world: World) -> None:
    for mode in ("gather", "views"):
        net, alone = Net(dtypes=DTYPES), Net(dtypes=DTYPES)
        for one in (net, alone):
            one.p3.requires_grad_(False)
            one.p4.requires_grad_(False)
        store, whole = fv.VarStore.from_module(net, mesh=world.mesh, grads=mode), fv.VarStore.from_module(alone)
        opt, reference = adamw(store, max_norm=0.5), adamw(whole, max_norm=0.5)
        for step in range(2):
            give(net, [g if p.requires_grad else None for p, g in pairs(net, gradients(world.rank, step))])
            give(alone, [g if p.requires_grad else None for p, g in pairs(alone, mean(world, step, ()))])
            for each in (opt, reference):
                each.step()
                each.zero_grad()
            assert_same(store, opt, whole, reference, f"{mode}, step {step}")
        store.check()


def pairs(module: nn.Module, grads: list[Tensor | None]) -> Any:
    return zip(module.parameters(), grads, strict=True)


@on(2)
def check_a_rollback_on_every_rank(world: World) -> None:
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store)
    give(net, gradients(world.rank, 0))
    opt.step()
    snapshot, values = store.snapshot(opt), store.values.clone()
    state = {key: stream.buffer.clone() for key, stream in opt.capture().streams.items()}
    opt.step()
    with pytest.raises(fv.CheckpointError, match="shared out over ranks"):
        snapshot.save(world.folder / "refused.safetensors")
    store.restore(snapshot)
    assert torch.equal(store.values, values)
    assert all(torch.equal(stream.buffer, state[key]) for key, stream in opt.capture().streams.items())


def check_a_file_of_one_process_is_loaded(world: World) -> None:
    alone = Net()
    whole = fv.VarStore.from_module(alone)
    reference = adamw(whole)
    give(alone, mean(world, 0, ()))
    reference.step()
    path = world.folder / f"whole.{world.rank}.safetensors"
    whole.save(path, reference)
    net = Net(seed=3)
    store = fv.VarStore.from_module(net, mesh=world.mesh)
    opt = adamw(store)
    store.load(path, opt)
    assert_same(store, opt, whole, reference, "loaded")


def two_axes(world: World) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (world.size // 2, 2), mesh_dim_names=("dp", "tp"))
