"""The store as a whole: growth, moves, dtypes, copies."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import torch
from hypothesis.stateful import precondition, rule
from torch import Tensor, nn

from tests.machine.words.common import LOOKS, SEEDS, Words, random


class StoreWords(Words):
    @rule(seed=SEEDS, decayed=st.booleans(), numel=st.sampled_from([1, 31, 200]))
    @precondition(lambda self: self.added < 4)
    def add(self, seed: int, decayed: bool, numel: int) -> None:
        """A variable joins the first group of each optimizer whose pattern fits its name."""
        twins = self.twins
        self.added += 1
        name = f"{'w_' if decayed else ''}late{self.added}"
        values = random(numel, seed, twins.theirs()["bias"].dtype)
        twins.module.register_parameter(name, twins.store.add(name, values))
        theirs = nn.Parameter(values.clone())
        twins.plain.register_parameter(name, theirs)
        for lane in twins.lanes:
            fitting = [k for k, pattern in enumerate(lane.patterns) if pattern is not None and pattern(name)]
            if fitting:
                lane.theirs.param_groups[fitting[0]]["params"].append(theirs)

    @rule()
    def move(self) -> None:
        """New streams on the device; `tests/gpu/test_devices.py` goes to another one and back."""
        before = self.twins.store["bias"].param
        assert self.twins.store.to(self.twins.store.device) is self.twins.store
        assert self.twins.store["bias"].param is before

    @rule(
        dtype=st.sampled_from([torch.float64, torch.float32]),
        how=st.sampled_from(["store", "module", "followed"]),
        look=LOOKS,
    )
    def convert(self, dtype: torch.dtype, how: str, look: str) -> None:
        """Values, gradients and state; or the module alone, and the store takes it in, asked or not."""
        twins = self.twins
        if how == "store":
            twins.store.set_dtype(dtype)
        else:
            twins.module.to(dtype)
            if how == "module":
                twins.store.rebind()
        twins.plain.to(dtype)
        if not twins.buffers:
            twins.module.running = twins.module.running.to(dtype)
        for lane in twins.lanes:
            for state in lane.theirs.state.values():
                for key, value in state.items():
                    if isinstance(value, Tensor) and key != "step":
                        state[key] = value.to(dtype)
        twins.cycle.sums = {name: grad.to(dtype) for name, grad in twins.cycle.sums.items()}
        self.look(look)

    @rule(dtype=st.sampled_from([torch.bfloat16, torch.float64, torch.float32]))
    def set_default_dtype(self, dtype: torch.dtype) -> None:
        """Changes nothing that is there, and nothing that comes."""
        torch.set_default_dtype(dtype)

    def teardown(self) -> None:
        torch.set_default_dtype(torch.float32)

    @rule()
    def go_on_with_a_deepcopy(self) -> None:
        """Module, store and optimizers together; gradients stay behind, as torch leaves a module's."""
        twins = self.twins
        optimizers = [lane.ours for lane in twins.lanes]
        twins.module, twins.store, optimizers = copy.deepcopy((twins.module, twins.store, optimizers))
        for lane, optimizer in zip(twins.lanes, optimizers, strict=True):
            lane.ours = optimizer
        twins.drop_gradients()

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
