"""Random sequences of what users do, on a store and on a plain torch model: they agree after every action.

`FLATVARS_SEQUENCES=1000 python -m pytest tests/machine` runs a thousand sequences; the default is what CI has time for.
"""

from __future__ import annotations

import copy
import io
import os
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from tests.machine.agreement import assert_agree
from tests.machine.twins import PAIRS, SHAPES, Twins

SEQUENCES = int(os.environ.get("FLATVARS_SEQUENCES", "200"))
ACTIONS = 25

NAMES = st.sampled_from(list(SHAPES))
SEEDS = st.integers(0, 2**16)


class Machine(RuleBasedStateMachine):
    """Actions; `assert_agree` after each."""

    twins: Twins

    @initialize(kind=st.sampled_from(list(PAIRS)), mode=st.sampled_from(["gather", "views"]))
    def begin(self, kind: str, mode: str) -> None:
        self.twins = Twins(kind, mode)
        self.added = 0

    # Gradients --------------------------------------------------------------------------------------------------------

    @rule(seed=SEEDS, none=st.sets(NAMES, max_size=3), bad=st.sampled_from(["", "", "", "nan", "inf"]), where=NAMES)
    def backward(self, seed: int, none: set[str], bad: str, where: str) -> None:
        """Gradients for all but some variables; now and then one that is not finite."""
        generator = torch.Generator().manual_seed(seed)
        for name, ours, _ in self.twins.pairs():
            grad = torch.randn(ours.shape, generator=generator, dtype=torch.float32).to(ours.dtype)
            if bad and name == where and grad.numel():
                grad.view(-1)[seed % grad.numel()] = float(bad)
            if ours.requires_grad:
                self.twins.give(name, None if name in none else grad)

    @rule(scale=st.sampled_from([1.0, 0.5, 0.25]))
    def accumulate(self, scale: float) -> None:
        self.twins.accumulate(scale)

    @rule(how=st.sampled_from(["optimizer", "store"]))
    def zero_grad(self, how: str) -> None:
        (self.twins.opt if how == "optimizer" else self.twins.store).zero_grad()
        self.twins.ref.zero_grad()
        self.twins.cycle.sums.clear()
        self.twins.cycle.spent = False

    @rule()
    @precondition(lambda self: self.twins.mode == "gather")
    def zero_grad_of_the_module(self) -> None:
        """Drops what is pending, and nothing that was accumulated."""
        self.twins.module.zero_grad()
        self.twins.plain.zero_grad()

    @rule()
    @precondition(lambda self: not self.twins.cycle.sums)
    def zero_grad_to_zeros(self) -> None:
        self.twins.opt.zero_grad(set_to_none=False)
        for name, _, theirs in self.twins.pairs():
            if theirs.grad is not None and name not in self.twins.frozen:
                theirs.grad.zero_()

    # Steps ------------------------------------------------------------------------------------------------------------

    @rule(max_norm=st.sampled_from([None, None, 0.5, 1e3]), skip=st.booleans())
    def step(self, max_norm: float | None, skip: bool) -> None:
        self.twins.step(max_norm, skip)
        assert_agree(self.twins)
        self.twins.copy_to_plain()

    @rule(gamma=st.sampled_from([0.5, 1.5]))
    def step_with_a_scheduler(self, gamma: float) -> None:
        optimizers = (self.twins.opt, self.twins.ref)
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) for optimizer in optimizers]
        self.twins.step(None, True)
        self.twins.ref._opt_called = True  # it is not called where a step is skipped
        for scheduler in schedulers:
            scheduler.step()
        assert_agree(self.twins)
        self.twins.copy_to_plain()

    # Masks ------------------------------------------------------------------------------------------------------------

    @rule(name=NAMES)
    def freeze(self, name: str) -> None:
        self.twins.store.freeze(name)
        theirs = dict(self.twins.plain.named_parameters())[name]
        if theirs.requires_grad:
            self.twins.frozen.add(name)
        theirs.requires_grad_(False)
        theirs.grad = None
        self.twins.cycle.sums.pop(name, None)

    @rule()
    def unfreeze(self) -> None:
        self.twins.store.unfreeze()
        for name, _, theirs in self.twins.pairs():
            if name in self.twins.frozen:
                theirs.requires_grad_(True)
        self.twins.frozen.clear()

    @rule()
    def compact(self) -> None:
        """Without room for state, what the optimizer knew of a frozen variable is gone, and its mask with it."""
        self.twins.store.compact()
        for name, _, theirs in self.twins.pairs():
            if not theirs.requires_grad:
                self.twins.forget_state(name)
                self.twins.masks.pop(name, None)

    @rule(name=NAMES, seed=SEEDS, remove=st.booleans())
    def mask(self, name: str, seed: int, remove: bool) -> None:
        variable = self.twins.store[name]
        if not variable.spec.has_room:
            return
        mask = torch.rand(variable.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
        self.twins.store.set_trainable_mask(name, None if remove else mask)
        self.twins.masks.pop(name, None)
        if not remove and not bool(mask.all()):
            self.twins.masks[name] = mask
        sums = self.twins.cycle.sums
        if name in sums:
            sums[name] = self.twins.masked(name, sums[name])
        if self.twins.mode == "views":  # gradients lie in the stream, which is 0 wherever an element is masked
            for masked, _, theirs in self.twins.pairs():
                theirs.grad = None if theirs.grad is None else self.twins.masked(masked, theirs.grad)

    # The store --------------------------------------------------------------------------------------------------------

    @rule(seed=SEEDS, decayed=st.booleans(), numel=st.sampled_from([1, 31, 200]))
    @precondition(lambda self: self.added < 4)
    def add(self, seed: int, decayed: bool, numel: int) -> None:
        """A variable joins the first group that matches its name."""
        self.added += 1
        name = f"{'w_' if decayed else ''}late{self.added}"
        values = torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(self.twins.plain.bias.dtype)
        self.twins.module.register_parameter(name, self.twins.store.add(name, values))
        theirs = nn.Parameter(values.clone())
        self.twins.plain.register_parameter(name, theirs)
        self.twins.ref.param_groups[0 if decayed else 1]["params"].append(theirs)

    @rule()
    def move(self) -> None:
        """New streams on the device; `tests/gpu/test_devices.py` goes to another one and back."""
        before = self.twins.store["bias"].param
        assert self.twins.store.to(self.twins.store.device) is self.twins.store
        assert self.twins.store["bias"].param is before

    @rule(dtype=st.sampled_from([torch.float64, torch.float32]), how=st.sampled_from(["store", "module"]))
    def convert(self, dtype: torch.dtype, how: str) -> None:
        """Values, gradients and state; or the module alone, and the store takes it in."""
        twins = self.twins
        if how == "store":
            twins.store.set_dtype(dtype)
        else:
            twins.module.to(dtype)
            twins.store.rebind()
        twins.plain.to(dtype)
        for _, _, theirs in twins.pairs():
            for key, value in twins.ref.state.get(theirs, {}).items():
                if isinstance(value, torch.Tensor) and key != "step":
                    twins.ref.state[theirs][key] = value.to(dtype)
        twins.cycle.sums = {name: grad.to(dtype) for name, grad in twins.cycle.sums.items()}

    @rule(seed=SEEDS, how=st.sampled_from(["in place", "replaced", "data"]))
    def count(self, seed: int, how: str) -> None:
        """A forward pass that moves a statistic, in place or not: both have it, and files of the store."""
        for module in (self.twins.module, self.twins.plain):
            running = module.running
            values = torch.randn(3, generator=torch.Generator().manual_seed(seed)).to(running.dtype)
            if how == "in place":
                running.copy_(values)
            elif how == "data":
                running.data = values
            else:
                module.running = values

    @rule(name=NAMES, seed=SEEDS, how=st.sampled_from(["parameter", "data", "copy", "variable"]))
    def write(self, name: str, seed: int, how: str) -> None:
        """Other values: a new Parameter, new memory, an in-place write."""
        twins = self.twins
        ours, theirs = twins.store[name].param, dict(twins.plain.named_parameters())[name]
        values = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed)).to(ours.dtype)
        if how == "parameter" and name != "bias":  # which two attributes hold
            grad = ours.grad
            fresh = nn.Parameter(values.clone(), ours.requires_grad)
            fresh.grad = grad
            setattr(twins.module, name, fresh)
            twins.store.rebind()
            assert twins.store[name].param is fresh
        elif how == "data":
            ours.data = values.clone()
            twins.store.rebind()
        elif how == "variable":
            twins.store[name].set_value(values)
        else:
            with torch.no_grad():
                ours.copy_(values)
        with torch.no_grad():
            theirs.copy_(values)

    @rule()
    def load_what_torch_saved(self) -> None:
        """State dicts of the module and of the optimizer go over and back."""
        twins = self.twins
        twins.module.load_state_dict(twins.plain.state_dict())
        twins.opt.load_state_dict(twins.ref.state_dict())
        saved: dict[str, Any] = twins.opt.state_dict()
        twins.ref.load_state_dict(copy.deepcopy(saved))  # torch keeps what it is given, which are our streams
        twins.plain.load_state_dict(twins.module.state_dict())

    @rule()
    def save_and_load(self) -> None:
        """A checkpoint brings everything back but gradients that a step has used."""
        file = io.BytesIO()
        self.twins.store.save(file, self.twins.opt)
        for variable in self.twins.store.variables().values():
            variable.value.fill_(9.0)
        for stream in self.twins.opt.capture().streams.values():
            stream.buffer.zero_()
        file.seek(0)
        self.twins.store.load(file, self.twins.opt)
        self.twins.forget_used()

    @rule()
    def go_on_with_a_deepcopy(self) -> None:
        """Module, store and optimizer together; gradients stay behind, as torch leaves a module's."""
        twins = self.twins
        twins.module, twins.store, twins.opt = copy.deepcopy((twins.module, twins.store, twins.opt))
        twins.plain.zero_grad()
        twins.cycle.sums.clear()

    @rule()
    def clone(self) -> None:
        """A clone holds the same, and shares nothing."""
        twins = self.twins
        clone = twins.store.clone()
        clone.check()
        for name, variable in clone.variables().items():
            original = twins.store[name]
            assert torch.equal(variable.value, original.value) or bool(torch.isnan(original.value).any())
            assert variable.requires_grad == original.requires_grad
            mask, expected = clone.trainable_mask(name), twins.store.trainable_mask(name)
            assert (mask is None) == (expected is None)
            variable.value.zero_()

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "twins"):
            assert_agree(self.twins)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=SEQUENCES,
    stateful_step_count=ACTIONS,
    suppress_health_check=list(HealthCheck),
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink]
    if os.environ.get("SHRINK")
    else [Phase.explicit, Phase.generate],
)
