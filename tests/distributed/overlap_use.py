"""Checks of when gradients are averaged, and of all that must not happen in between; `overlap.py` has the bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flatvars as fv
from flatvars.gradients import overlap

from .launch import World, on
from .overlap import CAP, Pair, backward, warm
from .steps import SHAPES, Net, adamw, gradients

__all__ = ["warm"]

# When -----------------------------------------------------------------------------------------------------------------


@contextmanager
def events(module: nn.Module) -> Iterator[list[str]]:
    """What happens: buckets that are sent, and layers that the backward pass has left."""
    found: list[str] = []
    held = overlap.Averaging

    class Noting(held):  # type: ignore[valid-type, misc]
        def __init__(self, piece: Tensor, owner: int, group: Any) -> None:
            found.append(f"{len(piece)} elements to {owner}")
            super().__init__(piece, owner, group)

    hooks = [
        layer.register_full_backward_hook(lambda *_, k=k: found.append(f"layer {k}")) for k, layer in enumerate(module)
    ]
    overlap.Averaging = Noting  # type: ignore[misc]
    try:
        yield found
    finally:
        overlap.Averaging = held  # type: ignore[misc]
        for hook in hooks:
            hook.remove()


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))


@on(2)
def check_messages_start_inside_of_the_backward_pass(world: World) -> None:
    for mode in ("gather", "views"):
        model = layers()
        store = fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=0.02, grads=mode)
        opt = adamw(store)
        with events(model) as found:
            with store.last_backward():
                model(torch.randn(5, 64, requires_grad=True)).sum().backward()
            inside = len(found)
            opt.step()
        sent = [event for event in found if "elements" in event]
        assert len(sent) >= 5
        assert found.index(sent[1]) < found.index("layer 0"), found
        assert len(found) == inside, "the step has nothing more to send"
        opt.zero_grad()


@on(2)
def check_the_order_is_one_on_all_ranks(world: World) -> None:
    """Rank 1 ends with its variables in another order than rank 0, and has none of some."""
    model = layers()
    store = fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=0.02)
    opt = adamw(store)
    with events(model) as found:
        with store.last_backward():
            used = model if world.rank == 0 else nn.Sequential(model[4], model[0], model[2])
            used(torch.randn(5, 64)).sum().backward()
        opt.step()
    everyone = [None, None]
    dist.all_gather_object(everyone, [event for event in found if "elements" in event])
    assert everyone[0] == everyone[1]
    opt.zero_grad()


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that was made in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
        return out


@on(2)
def check_memory(world: World) -> None:
    """No second buffer of all gradients, nor of a rank's range of them."""
    for mode, cap in itertools.product(("gather", "views"), (0.02, None)):
        model = layers()
        store = fv.VarStore.from_module(model, mesh=world.mesh, bucket_cap_mb=cap, grads=mode)
        opt = adamw(store)
        x = torch.randn(5, 64)
        for step in range(2):
            with Largest() as largest:
                with store.last_backward() if cap else nullcontext():
                    model(x).sum().backward()
                opt.step()
            opt.zero_grad()
            if step == 0:  # states and buffers are made
                continue
        share = store.regions[0].trainable_numel * 4 // 2
        assert largest.nbytes < share / 2, (mode, largest.nbytes, share)
        assert bool(opt._divided._grads) is (cap is None), "averages of buckets lie in the flat gradients"


# Wrong use ------------------------------------------------------------------------------------------------------------


def again(pair: Pair) -> None:
    with pytest.raises(fv.GradientError, match=r"a backward pass reached 'p\d' after last_backward"):
        backward(pair.nets[0], gradients(0, 7))


def changed(pair: Pair) -> None:
    pair.nets[0].p1.grad.mul_(2.0)


def clipped(pair: Pair) -> None:
    torch.nn.utils.clip_grad_norm_(pair.nets[0].parameters(), 0.1)


def replaced(pair: Pair) -> None:
    pair.nets[0].p1.grad = torch.ones_like(pair.nets[0].p1)


def dropped(pair: Pair) -> None:
    pair.nets[0].zero_grad()


def masked(pair: Pair) -> None:
    pair.store.set_trainable_mask("p1", torch.arange(SHAPES[1][1]) % 2 == 0)


WRONG = {again: "a backward pass reached", **dict.fromkeys((changed, clipped, replaced, dropped), "was changed after")}


def refuse_step(pair: Pair, match: str) -> None:
    """On every rank: nothing is stepped, until gradients are zeroed; and steps are right then."""
    before = pair.store.values.clone()
    for _ in range(2):
        with pytest.raises(fv.GradientError, match=match):
            pair.opt.step()
    assert torch.equal(pair.store.values, before)
    for opt in pair.opts:
        opt.zero_grad()
    pair.backward(gradients(pair.world.rank, 3))
    pair.step()
    pair.assert_same(match)


@on(2)
def check_gradients_of_one_rank_that_are_others_by_then(world: World) -> None:
    for mode in ("gather", "views"):
        pair = Pair(world, grads=mode)
        for wrong, match in WRONG.items():
            pair.backward(gradients(world.rank, 0))
            if world.rank == 1:
                wrong(pair)
            refuse_step(pair, f"nothing was stepped. rank 1: .*{match}")
        pair.backward(gradients(world.rank, 0))
        masked(pair)
        with pytest.raises(fv.GradientError, match="frozen, masked or moved"):
            pair.opt.step()
        pair.opt.zero_grad()


REFUSED: list[Callable[[Pair], Any]] = [
    lambda pair: pair.store.accumulate(),
    lambda pair: pair.store.grad_norm(),
    lambda pair: pair.store.norms(),
    lambda pair: pair.store.clip_grad_norm_(1.0),
    lambda pair: pair.store.clip_grad_value_(1.0),
    lambda pair: pair.store.grads,
    lambda pair: pair.store.snapshot(pair.opt),
    lambda pair: pair.store["p1"].accumulate_grad(torch.ones(SHAPES[1])),
    lambda pair: pair.store.compact(),
]


@on(2)
def check_what_is_refused_after_an_exchange(world: World) -> None:
    for mode in ("gather", "views"):
        pair = Pair(world, grads=mode)
        pair.backward(gradients(world.rank, 0))
        for refused in REFUSED:
            with pytest.raises(fv.GradientError, match="last_backward"):
                refused(pair)
        with pytest.raises(fv.GradientError, match="were not used"), pair.store.last_backward():
            pass
        pair.step()  # none of it has changed anything
        pair.assert_same(mode)


def broken(_: Tensor) -> Tensor:
    raise ArithmeticError("broken")


def break_in_the_middle(pair: Pair) -> None:
    hook = pair.nets[0].p2.register_hook(broken)
    try:
        backward(pair.nets[0], gradients(0, 0))
    finally:
        hook.remove()


def break_before(pair: Pair) -> None:
    raise ArithmeticError("broken")


@on(2)
def check_blocks_that_raise_on_one_rank(world: World) -> None:
    for mode in ("gather", "views"):
        pair = Pair(world, grads=mode)
        for breaking in (break_in_the_middle, break_before):
            if world.rank == 1:
                with pytest.raises(ArithmeticError), pair.store.last_backward():
                    breaking(pair)
            else:
                with pair.store.last_backward():
                    backward(pair.nets[0], gradients(0, 0))
            refuse_step(pair, "rank 1: the block of last_backward.. raised ArithmeticError: broken")


INSIDE: dict[str, Callable[[Pair], Any]] = {
    "inside of last_backward": lambda pair: pair.opt.step(),
    "zeroed inside": lambda pair: pair.opt.zero_grad(),
    "twice inside": lambda pair: backward(pair.nets[0], gradients(0, 5)),
    "open already": lambda pair: pair.store.last_backward().__enter__(),
}


def in_a_block(pair: Pair, wrong: Callable[[Pair], Any]) -> None:
    with pair.store.last_backward():
        backward(pair.nets[0], gradients(pair.world.rank, 0))
        wrong(pair)


@on(2)
def check_what_does_not_belong_into_a_block(world: World) -> None:
    pair = Pair(world)
    for match, wrong in INSIDE.items():
        with pytest.raises(fv.GradientError, match=match):
            in_a_block(pair, wrong)
        refuse_step(pair, match)


@on(2)
def check_a_gradient_that_no_kernel_reads(world: World) -> None:
    """Of one rank: it raises there, and all know."""

    def cut_short(param: Tensor) -> None:
        param.grad.data = torch.zeros(3)

    net = Net()
    if world.rank == 1:
        net.p1.register_post_accumulate_grad_hook(cut_short)
    opt = adamw(fv.VarStore.from_module(net, mesh=world.mesh, bucket_cap_mb=CAP))
    refusing: Any = pytest.raises(fv.GradientError, match="p1") if world.rank == 1 else nullcontext()
    with refusing, opt.store.last_backward():
        backward(net, gradients(world.rank, 0))
    with pytest.raises(fv.GradientError, match=r"rank 1: .*p1"):
        opt.step()


@on(2)
def check_thrown_away(world: World) -> None:
    """By whoever zeroes, and however."""
    for mode in ("gather", "views"):
        pair = Pair(world, grads=mode)
        for drop in (pair.opt.zero_grad, pair.store.zero_grad, pair.nets[0].zero_grad):
            with pair.store.last_backward():
                backward(pair.nets[0], gradients(world.rank, 8, ((0, 1),)))
            drop()
            pair.backward(gradients(world.rank, 0))
            pair.step()
            pair.assert_same(f"{mode}, {drop}")
        pair.backward(gradients(world.rank, 1, ((-1, 1), (0, 4))))
        for opt in pair.opts:
            opt.zero_grad(set_to_none=False)
        pair.step()
        pair.assert_same(f"{mode}, zeros")


@on(2)
def check_scalers_that_do_not_fit(world: World) -> None:
    for given, match in ((False, "was not given it"), (True, "unscale_")):
        pair = Pair(world)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        with pair.store.last_backward(scaler if given else None):
            backward(pair.nets[0], gradients(world.rank, 0), scaler)
        if given:
            scaler.unscale_(pair.opt)
        with pytest.raises(fv.GradientError, match=match):
            scaler.step(pair.opt)
    pair = Pair(world)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pair.store.last_backward(scaler):
        backward(pair.nets[0], gradients(world.rank, 0), scaler)
    scaler.update(8.0 if world.rank == 0 else 4.0)
    with pytest.raises(fv.GradientError, match="rank 0: the GradScaler's scale is another"):
        scaler.step(pair.opt)


@on(2)
def check_who_can_overlap(world: World) -> None:
    store = fv.VarStore.from_module(Net(), mesh=world.mesh)
    with pytest.raises(fv.FlatvarsError, match="bucket_cap_mb=25"), store.last_backward():
        pass
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh, bucket_cap_mb=CAP)
    opt = fv.optim.AdamW([net.p0, net.p1])
    backward(net, gradients(world.rank, 0))
    with pytest.raises(fv.FlatvarsError, match=r"takes one optimizer.*steps 2 of 7"):
        opt.step()
    net = Net()
    store = fv.VarStore.from_module(net, mesh=world.mesh, bucket_cap_mb=CAP * (1 + 30 * world.rank))
    with pytest.raises(fv.DisagreementError, match="bucket"), store.last_backward():
        pass
