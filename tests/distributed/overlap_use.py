"""Checks of what must not happen to gradients between their exchange and the step: nothing hangs, all ranks know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import flatvars as fv

from .launch import World, on
from .overlap import CAP, Pair, backward, warm
from .steps import SHAPES, Net, adamw, gradients

__all__ = ["warm"]


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


def assert_step_is_refused(pair: Pair, match: str) -> None:
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
            assert_step_is_refused(pair, f"nothing was stepped. rank 1: .*{match}")
        pair.backward(gradients(world.rank, 0))
        masked(pair)
        with pytest.raises(fv.GradientError, match="frozen, masked or moved"):
            pair.opt.step()
        pair.opt.zero_grad()


@on(2)
def check_a_gradient_in_the_flat_buffer_that_is_dropped(world: World) -> None:
    """Of one rank and one variable: an average lies in its place, which is not what was dropped."""
    pair = Pair(world)
    for set_to_none in (True, False):
        pair.backward(gradients(world.rank, 0), last=False)
        for store in pair.stores:
            store.accumulate()
        pair.backward(gradients(world.rank, 1))
        if world.rank == 1:
            pair.store._gradients.zero(set_to_none, [pair.store["p1"]])
        assert_step_is_refused(pair, "rank 1: the gradient of 'p1' was changed after")


@on(2)
def check_variables_that_are_frozen_before_the_step(world: World) -> None:
    """On all ranks, with a norm, and before the order of buckets is known: messages of a step are of one length."""
    for clear in (True, False):
        pair = Pair(world, lambda store: adamw(store, max_norm=0.5))
        pair.backward(gradients(world.rank, 0))
        for store in pair.stores:
            store.freeze("p[15]", clear_grad=clear)
        assert_step_is_refused(pair, "was changed after" if clear else "frozen, masked or moved")


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
    lambda pair: pair.store.remove("p1"),
    lambda pair: pair.store.release(),
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
            assert_step_is_refused(pair, "rank 1: the block of last_backward.. raised ArithmeticError: broken")


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
        assert_step_is_refused(pair, match)


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
def check_numbers_that_differ_are_mended(world: World) -> None:
    """What was averaged waits for the step that all ranks take."""
    for mode in ("gather", "views"):
        pair = Pair(world, grads=mode)
        pair.backward(gradients(world.rank, 0))
        rate = pair.opt.param_groups[0]["lr"]
        pair.opt.param_groups[0]["lr"] = rate * (1 + world.rank)
        with pytest.raises(fv.DisagreementError, match="lr of param group 0"):
            pair.opt.step()
        pair.opt.param_groups[0]["lr"] = rate
        pair.step()
        pair.assert_same(mode)


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
