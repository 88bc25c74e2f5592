"""Checks of what one rank does alone after a first step: nothing hangs, all ranks are told, and all can go on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flatvars as fv
from flatvars.optim.base import Optimizer

from .launch import World, on
from .overlap import CAP, backward, warm
from .steps import SHAPES, Net, adamw, assert_same, gradients, mean

__all__ = ["warm"]


class Pair:
    """The same model on ranks and in one process.

    Args:
        waits: Whether steps look at what the ranks said in the same step, as on a CPU, or in the next, as on a GPU.
        options: Of the ranks' store.
    """

    def __init__(
        self, world: World, make: Callable[[Any], Optimizer] = adamw, waits: bool = True, **options: Any
    ) -> None:
        self.world, self.taken = world, 0
        self.net, self.alone = Net(), Net()
        self.store = fv.VarStore.from_module(self.net, mesh=world.mesh, **options)
        self.whole = fv.VarStore.from_module(self.alone)
        self.opt, self.reference = make(self.store), make(self.whole)
        self.late = not waits
        self.step()
        self.opt._divided.ballot.waits = waits

    @property
    def sides(self) -> list[tuple[fv.VarStore, Optimizer]]:
        return [(self.store, self.opt), (self.whole, self.reference)]

    def give(self) -> None:
        self.backward(gradients(self.world.rank, self.taken), self.net)
        self.backward(mean(self.world, self.taken, ()), self.alone)

    def backward(self, grads: list[Tensor | None], net: Net) -> None:
        if net is self.net and self.store._gradients.overlap is not None:
            with self.store.last_backward():
                backward(net, grads)
        else:
            backward(net, grads)

    def step(self) -> None:
        self.give()
        for _, opt in self.sides:
            opt.step()
            opt.zero_grad()
        self.taken += 1
        assert_same(self.store, self.opt, self.whole, self.reference, f"step {self.taken}")

    def assert_refused(
        self, error: type[Exception], match: str, mine: tuple[type[Exception], str] | None = None
    ) -> None:
        """On every rank, and again; on a GPU one step later, except where this rank raises by itself (`mine`)."""
        before = self.store.values.clone()
        for turn in range(2):
            self.give()
            if self.late and not turn and mine is None:
                self.opt.step()
            else:
                kind, words = (error, match) if mine is None else mine
                with pytest.raises(kind, match=words):
                    self.opt.step()
            assert torch.equal(self.store.values, before), "nothing was stepped"
            for _, opt in self.sides:
                opt.zero_grad()

    def assert_looked_at(self) -> None:
        """A step is not taken, and the next one says so: what one rank was given is the same on all."""
        self.give()
        self.opt.step()
        with pytest.raises(fv.DisagreementError, match=r"they are the same, .* Step again"):
            self.opt.step()
        for _, opt in self.sides:
            opt.zero_grad()


def half_of(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(shape[-1]) % 2 == 0


def freeze(store: fv.VarStore, opt: Optimizer) -> None:
    store.freeze("p1")


def mask(store: fv.VarStore, opt: Optimizer) -> None:
    store.set_trainable_mask("p1", half_of(SHAPES[1]))


def rename(store: fv.VarStore, opt: Optimizer) -> None:
    store.rename("p5", "other")


def leave(store: fv.VarStore, opt: Optimizer) -> None:
    opt.param_groups[0]["params"].pop(1)


def group(store: fv.VarStore, opt: Optimizer) -> None:
    last = opt.param_groups[0]["params"].pop()
    opt.add_param_group({"params": [last], "lr": 0.5})


CHANGES: dict[Callable[[fv.VarStore, Optimizer], None], str] = {
    freeze: r"p1: .*trained on rank 0, .*frozen on rank 1.*Freeze, mask, .* on every rank alike",
    mask: r"p1: .*trained on rank 0, .*with a mask of checksum .* on rank 1",
    rename: r"p5: .*nothing on rank 1; other: nothing on rank 0",
    leave: r"p1: .*nothing on rank 1",
    group: r"p6: .*param group 1, trained on rank 1",
}


# Checks ---------------------------------------------------------------------------------------------------------------


@on(2)
def check_what_one_rank_changed_is_told_to_all(world: World) -> None:
    """And when the others have done the same, all step on by it: as one process, bit for bit."""
    modes: list[dict[str, Any]] = [{}, {"grads": "views"}, {"waits": False}, {"bucket_cap_mb": CAP}]
    modes += [{"bucket_cap_mb": CAP, "grads": "views", "waits": False}]
    for options, (change, match) in itertools.product(modes, CHANGES.items()):
        if change in (leave, group) and "bucket_cap_mb" in options:
            continue  # which takes one optimizer of all
        pair = Pair(world, **options)
        if world.rank == 1:
            change(pair.store, pair.opt)
        pair.assert_refused(fv.DisagreementError, match)
        if world.rank == 0:
            change(pair.store, pair.opt)
        change(pair.whole, pair.reference)
        for _ in range(2):
            pair.step()


@on(2)
def check_what_one_rank_takes_back(world: World) -> None:
    for waits in (True, False):
        pair = Pair(world, waits=waits)
        if world.rank == 1:
            pair.store.freeze("p1")
        pair.assert_refused(fv.DisagreementError, "p1: .*frozen on rank 1")
        if world.rank == 1:
            pair.store.unfreeze("p1")
        pair.step()


@on(3)
def check_one_of_three(world: World) -> None:
    pair = Pair(world, lambda store: fv.optim.Muon(store, max_norm=0.5), waits=False)
    if world.rank == 1:
        pair.store.freeze("p1")
    pair.assert_refused(fv.DisagreementError, "p1: .*trained by Muon on rank 0, 2, .*frozen on rank 1")
    if world.rank != 1:
        pair.store.freeze("p1")
    pair.whole.freeze("p1")
    pair.step()


@on(2)
def check_what_was_sent_while_a_rank_could_not_send_is_no_average(world: World) -> None:
    pair = Pair(world, bucket_cap_mb=CAP)
    if world.rank == 1:
        pair.store.freeze("p1")
    pair.give()
    with pytest.raises(fv.DisagreementError, match="p1"):
        pair.opt.step()
    if world.rank == 1:
        pair.store.unfreeze("p1")
    with pytest.raises(fv.GradientError, match=r"could not send their gradients; call zero_grad\(\)"):
        pair.opt.step()
    for _, opt in pair.sides:
        opt.zero_grad()
    pair.step()


def replace(pair: Pair) -> None:
    pair.net.load_state_dict({name: value.clone() for name, value in pair.net.state_dict().items()}, assign=True)


def spoil(pair: Pair) -> None:
    pair.net.p1.data = torch.zeros(3, 3)


ERRORS: dict[Callable[[Pair], None], str] = {
    replace: r"store\.rebind\(\)",
    spoil: r"gradient and state of another shape would be lost",
}


@on(2)
def check_an_error_of_one_rank_is_told_to_all(world: World) -> None:
    """Also where gradients are sent in buckets, and where nobody waits: the others raise one step later there."""
    modes: list[dict[str, Any]] = [{}, {"waits": False}, {"bucket_cap_mb": CAP}]
    for options, (wrong, match) in itertools.product(modes, ERRORS.items()):
        pair = Pair(world, **options)
        kept, before = pair.net.p1.data, pair.store.values.clone()
        if world.rank == 1:
            wrong(pair)
        for turn in range(2):
            backward(pair.net, gradients(world.rank, 1) if world.rank == 0 else [None] * len(SHAPES))
            if world.rank == 0 and pair.late and not turn:
                pair.opt.step()
            else:
                error, words = (fv.GradientError, "rank 1: .*") if world.rank == 0 else (fv.AliasError, "")
                with pytest.raises(error, match=words + match):
                    pair.opt.step()
        for _, opt in pair.sides:
            opt.zero_grad()
        if world.rank == 1 and wrong is replace:
            pair.store.rebind()
        elif world.rank == 1:
            pair.net.p1.data = kept
        assert torch.equal(pair.store.values, before), "nothing was stepped"
        if pair.late and wrong is replace:  # values were taken in on one rank alone, and all look at theirs first
            pair.assert_looked_at()
        pair.step()


@on(2)
def check_an_error_of_all_ranks_is_that_of_each(world: World) -> None:
    for options in ({}, {"waits": False}, {"bucket_cap_mb": CAP}):
        pair = Pair(world, **options)
        replace(pair)
        for _ in range(2):
            with pytest.raises(fv.AliasError, match=r"store\.rebind\(\)"):
                pair.opt.step()
        pair.net.zero_grad()
        pair.store.rebind()
        pair.step()


@on(2)
def check_one_rank_unfreezes_what_has_no_room(world: World) -> None:
    net = Net()
    net.p1.requires_grad_(False)
    opt = adamw(fv.VarStore.from_module(net, mesh=world.mesh))
    backward(net, gradients(world.rank, 0))
    opt.step()
    if world.rank == 1:
        net.p1.requires_grad_(True)
    error: Any = fv.FlatvarsError if world.rank == 1 else fv.GradientError
    with pytest.raises(error, match=r"from rank to rank: .* before the first step"):
        opt.step()
    net.p1.requires_grad_(False)
    opt.step()
