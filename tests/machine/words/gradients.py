"""Gradients: what autograd, users and other libraries do to `.grad`, and what the store does with it."""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
import torch
from hypothesis.stateful import precondition, rule
from torch import nn

from tests.machine.words.common import NAMES, NUMBERS, SEEDS, Words, random


class GradientWords(Words):
    @rule(seed=SEEDS, none=st.sets(NAMES, max_size=3), bad=st.sampled_from(["", "", "", "nan", "inf"]), where=NAMES)
    def backward(self, seed: int, none: set[str], bad: str, where: str) -> None:
        """New gradients for all but some variables; now and then one that is not finite."""
        for number, (name, ours, _) in enumerate(self.twins.pairs()):
            grad = random(ours.shape, seed + number, ours.dtype)
            if bad and name == where and grad.numel():
                grad.view(-1)[seed % grad.numel()] = float(bad)
            if ours.requires_grad:
                self.twins.give(name, None if name in none else grad)

    @rule(seed=SEEDS, names=st.sets(NAMES, min_size=1))
    def backward_on_top(self, seed: int, names: set[str]) -> None:
        """Autograd adds to what is there, by its own means."""
        for number, name in enumerate(sorted(names)):
            ours, theirs = self.twins.pair(name)
            if ours.requires_grad:
                grad = random(ours.shape, seed + number, ours.dtype)
                with warnings.catch_warnings():  # of a `.grad` that a user put there in another memory order
                    warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
                    torch.autograd.backward([ours, theirs], [grad, grad.clone()])
                self.twins.cycle.used.discard(name)

    @rule(name=NAMES)
    def drop_one(self, name: str) -> None:
        for param in self.twins.pair(name):
            param.grad = None

    @rule(other=st.sampled_from(["w_matrix", "w_image"]))
    def swap(self, other: str) -> None:
        """Two parameters of one shape exchange their `.grad`; with another shape, nothing is exchanged."""
        if other != "w_matrix" or {"w_matrix", "w_other"} & self.twins.cycle.frozen:
            return
        for module in (self.twins.module, self.twins.plain):
            one, two = module.get_parameter("w_matrix"), module.get_parameter("w_other")
            one.grad, two.grad = two.grad, one.grad
        self.twins.cycle.used -= {"w_matrix", "w_other"}

    # By others ------------------------------------------------------------------------------------------------------

    @rule(how=st.sampled_from(["norm", "value", "multiply", "each"]))
    def rewritten_by_others(self, how: str) -> None:
        """In-place clipping and scaling over `.grad`, as trainers do it."""
        grads = [param.grad for param in self.twins.plain.parameters() if param.grad is not None]
        # torch's clipping by value fails where there is none; NaN times a view that is no gradient would make it one.
        if not grads or (how == "norm" and not all(bool(grad.isfinite().all()) for grad in grads)):
            return
        for module in (self.twins.module, self.twins.plain):
            if how == "norm":
                nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            elif how == "value":
                nn.utils.clip_grad_value_(module.parameters(), 0.1)
            elif how == "multiply":
                torch._foreach_mul_([param.grad for param in module.parameters() if param.grad is not None], 2.0)
            else:
                for param in module.parameters():
                    if param.grad is not None:
                        param.grad.mul_(0.5)
        self._touch_empty()

    def _touch_empty(self) -> None:
        """A view without elements cannot say that it is no gradient: whoever writes there has made it one."""
        for _, ours, theirs in self.twins.pairs():
            if self.twins.mode == "views" and not ours.numel() and ours.grad is not None and theirs.grad is None:
                theirs.grad = torch.zeros_like(theirs)

    # By the store ---------------------------------------------------------------------------------------------------

    @rule(scale=st.sampled_from([1.0, 0.5, 0.25]))
    def accumulate(self, scale: float) -> None:
        scale = 1.0 if self.twins.mode == "views" else scale
        self.twins.store.accumulate(scale=scale)
        self.twins.cycle.accumulate(scale)

    @rule(how=st.sampled_from(["norm", "value"]))
    def clip_by_the_store(self, how: str) -> None:
        cycle = self.twins.cycle
        cycle.accumulate()
        if how == "value":
            self.twins.store.clip_grad_value_(0.1)
            cycle.rewrite(lambda grad: grad.clamp(-0.1, 0.1))
            return
        norm = cycle.norm(cycle.collect())
        taken = self.twins.store.clip_grad_norm_(0.5)
        torch.testing.assert_close(taken.double(), norm, rtol=1e-5, atol=1e-12, equal_nan=True)
        factor = torch.clamp(0.5 / (norm + 1e-6), max=1.0)
        cycle.rewrite(lambda grad: (grad.double() * factor).to(grad.dtype))

    @rule()
    def look_at_norms(self) -> None:
        cycle, store = self.twins.cycle, self.twins.store
        grads = cycle.collect()
        torch.testing.assert_close(store.grad_norm().double(), cycle.norm(grads), rtol=1e-5, atol=1e-12, equal_nan=True)
        norms = store.norms()
        assert set(norms) == {name for name, ours, _ in self.twins.pairs() if ours.requires_grad}
        for name, (value, grad) in norms.items():
            expected = torch.linalg.vector_norm(self.twins.theirs()[name].detach(), dtype=torch.float64)
            torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-12, equal_nan=True)
            assert (grad is None) == (name not in grads), name
            if grad is not None:
                expected = torch.linalg.vector_norm(grads[name], dtype=torch.float64)
                torch.testing.assert_close(grad.double(), expected, rtol=2e-5, atol=1e-12, equal_nan=True)

    # Zeroing --------------------------------------------------------------------------------------------------------

    @rule(number=NUMBERS)
    def zero_grad_of_an_optimizer(self, number: int) -> None:
        lane = self.lane(number)
        lane.ours.zero_grad()
        self.twins.cycle.zero(self.twins.members(lane))

    @rule()
    def zero_grad_of_the_store(self) -> None:
        self.twins.store.zero_grad()
        self.twins.drop_gradients()

    @rule()
    @precondition(lambda self: self.twins.mode == "gather")
    def zero_grad_of_the_module(self) -> None:
        """Drops what is pending, and nothing that was accumulated."""
        self.twins.module.zero_grad()
        self.twins.plain.zero_grad()

    @rule(number=NUMBERS)
    @precondition(lambda self: not self.twins.cycle.sums)
    def zero_grad_to_zeros(self, number: int) -> None:
        lane = self.lane(number)
        lane.ours.zero_grad(set_to_none=False)
        for name in self.twins.members(lane):
            grad = self.twins.theirs()[name].grad
            if grad is not None and name not in self.twins.cycle.frozen:
                grad.zero_()
                self.twins.cycle.used.discard(name)
