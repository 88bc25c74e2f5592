"""Checks of what torch allows users to do to the memory of parameters, where ranks share state: followed, or said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

from .launch import World, on
from .steps import Net, adamw, assert_same, give, gradients, mean


def warm() -> None:
    """Compiled with the steps'."""


class Pair:
    """The same model on ranks and in one process.

    Attributes:
        net, store, opt: This rank's.
        alone, whole, reference: Those of one process.
    """

    def __init__(self, world: World, steps: int) -> None:
        self.world, self.taken = world, 0
        self.net, self.alone = Net(), Net()
        self.store = fv.VarStore.from_module(self.net, mesh=world.mesh)
        self.whole = fv.VarStore.from_module(self.alone)
        self.opt, self.reference = adamw(self.store, max_norm=0.5), adamw(self.whole, max_norm=0.5)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.give()
        self.opt.step()
        self.reference.step()
        self.opt.zero_grad()
        self.reference.zero_grad()
        self.taken += 1
        assert_same(self.store, self.opt, self.whole, self.reference, f"step {self.taken}")

    def give(self) -> None:
        give(self.net, gradients(self.world.rank, self.taken))
        give(self.alone, mean(self.world, self.taken, ()))

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        return self.net, self.alone


def doubled(module: nn.Module) -> dict[str, Any]:
    return {name: 2 * value.detach().clone() for name, value in module.state_dict().items()}


# Checks ---------------------------------------------------------------------------------------------------------------


@on(2)
def check_what_left_the_store_is_followed(world: World) -> None:
    """Other memory of parameters and buffers is taken in, before a first step and after one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)
        for steps in (0, 1):
            pair = Pair(world, steps)
            for module in pair.modules:
                module.p1.data = 3.0 * module.p1.detach()
            pair.step()
            for module, state in zip(pair.modules, map(doubled, pair.modules), strict=True):
                module.to_empty(device="cpu")
                module.load_state_dict(state)
            pair.step()
            assert torch.equal(pair.store["seen"].value, pair.net.seen), "buffers come back too"
            pair.net.seen.add_(1.0)
            assert torch.equal(pair.store["seen"].value, pair.net.seen), "in the store's memory"


@on(2)
def check_other_parameters_are_taken_in_when_they_are_rebound(world: World) -> None:
    for steps in (0, 1):
        pair = Pair(world, steps)
        for module in pair.modules:
            module.load_state_dict(doubled(module), assign=True)
        pair.give()
        for one in (pair.opt, pair.reference):
            with pytest.raises(fv.AliasError, match=r"store\.rebind\(\)"):
                one.step()
        for module, store in zip(pair.modules, (pair.store, pair.whole), strict=True):
            module.zero_grad()
            store.rebind()
        pair.step()  # with the state that was there


@on(2)
def check_values_that_differ_are_told(world: World) -> None:
    """Ranks that were given other values, or of which one alone was given some, do not step a mixture of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)
        pair = Pair(world, 1)
        before = pair.store.values.clone()
        pair.net.p1.data = pair.net.p1.detach() + world.rank  # as an initialization on every rank for itself
        for _ in range(2):  # until they are the same
            pair.net.zero_grad()
            give(pair.net, gradients(world.rank, 1))
            with pytest.raises(
                fv.DisagreementError, match=r"values of p1, which came from outside.*on rank 0.*on rank 1"
            ):
                pair.opt.step()
        pair.net.zero_grad()
        with torch.no_grad():
            pair.net.p1.copy_(pair.alone.p1)
        assert torch.equal(pair.store.values, before), "nothing was stepped"
        pair.step()


@on(2)
def check_values_of_one_rank_alone(world: World) -> None:
    """The same in other memory are the same; others are told until they are written over, wherever that is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)
        pair = Pair(world, 1)
        if world.rank == 1:  # as who evaluates with other values there, and puts these back
            pair.net.p1.data = pair.net.p1.detach().clone()
        pair.step()
        before = pair.store.values.clone()
        if world.rank == 1:
            pair.net.p1.data = pair.net.p1.detach() + 1.0
        for _ in range(2):
            pair.net.zero_grad()
            pair.give()
            with pytest.raises(fv.DisagreementError, match=r"values of p1.*rank 0.*rank 1.*replace values on every"):
                pair.opt.step()
        for module in (pair.net, pair.alone):
            module.zero_grad()
        if world.rank == 1:
            with torch.no_grad():
                pair.net.p1.copy_(pair.alone.p1)
        assert torch.equal(pair.store.values, before), "nothing was stepped"
        pair.step()
        if world.rank == 1:  # and all follow one, by writing in place
            pair.net.p1.data = pair.net.p1.detach() + 1.0
        pair.give()
        with pytest.raises(fv.DisagreementError, match="values of p1"):
            pair.opt.step()
        for module in (pair.net, pair.alone) if world.rank == 0 else (pair.alone,):
            with torch.no_grad():
                module.p1.add_(1.0)
        for module in (pair.net, pair.alone):
            module.zero_grad()
        pair.step()


@on(2)
def check_a_module_that_was_converted_is_refused(world: World) -> None:
    """Before the first step it is followed; then state would move from rank to rank."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)
        pair = Pair(world, 0)
        for module in pair.modules:
            module.to(torch.bfloat16)
        pair.step()
        values = [p.detach().clone() for p in pair.net.parameters()]
        pair.net.to(torch.float32)
        give(pair.net, gradients(world.rank, 1))
        for _ in range(2):
            with pytest.raises(fv.FlatvarsError, match=r"from rank to rank: .* before the first step"):
                pair.opt.step()
        assert all(torch.equal(p, q.float()) for p, q in zip(pair.net.parameters(), values, strict=True))
