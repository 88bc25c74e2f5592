"""What users do to modules: values written in any way, Parameters and buffers replaced."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis.stateful import rule
from torch import nn

from tests.machine.words.common import LOOKS, NAMES, SEEDS, Words, random


class ModuleWords(Words):
    @rule(name=NAMES, seed=SEEDS, how=st.sampled_from(["parameter", "data", "copy", "variable"]))
    def write(self, name: str, seed: int, how: str) -> None:
        """Other values: a new Parameter, new memory, an in-place write."""
        twins = self.twins
        ours, theirs = twins.pair(name)
        values = random(ours.shape, seed, ours.dtype)
        if how == "parameter" and name != "bias":  # which two attributes hold
            grad = ours.grad
            fresh = nn.Parameter(values.clone(), ours.requires_grad)
            fresh.grad = grad
            setattr(twins.module, name, fresh)
            twins.store.rebind()
            assert twins.store[name].param is fresh
            self._assert_listed(name)
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

    @rule(name=NAMES, seed=SEEDS, look=LOOKS)
    def move_memory(self, name: str, seed: int, look: str) -> None:
        """`.data =` with nothing else: the store follows."""
        ours, theirs = self.twins.pair(name)
        values = random(ours.shape, seed, ours.dtype)
        ours.data = values.clone()
        with torch.no_grad():
            theirs.copy_(values)
        self.look(look)

    @rule(rows=st.integers(1, 40), seed=SEEDS, graded=st.booleans(), look=LOOKS)
    def reshape(self, rows: int, seed: int, graded: bool, look: str) -> None:
        """A Parameter of another shape takes the place of one, which begins anew, in the groups as well."""
        twins, cycle, name = self.twins, self.twins.cycle, "w_tile"
        ours, theirs = twins.pair(name)
        values = random((rows, 30), seed, ours.dtype)
        if values.shape == ours.shape:
            return
        fresh, twin = (nn.Parameter(values.clone(), ours.requires_grad) for _ in range(2))
        cycle.zero([name])
        cycle.masks.pop(name, None)
        setattr(twins.module, name, fresh)
        setattr(twins.plain, name, twin)
        if graded and ours.requires_grad:
            fresh.grad, twin.grad = values.clone(), values.clone()
        for lane in twins.lanes:
            lane.theirs.state.pop(theirs, None)
            for group in lane.theirs.param_groups:
                group["params"] = [twin if param is theirs else param for param in group["params"]]
        twins.store.rebind()
        assert twins.store[name].param is fresh
        self._assert_listed(name)
        self.look(look)

    def _assert_listed(self, name: str) -> None:
        """A Parameter that replaced another one stands in the groups without a look of the optimizers."""
        ours, theirs = self.twins.pair(name)
        for lane in self.twins.lanes:
            listed, expected = (
                [param is wanted for group in optimizer.param_groups for param in group["params"]]
                for optimizer, wanted in zip(lane.both, (ours, theirs), strict=True)
            )
            assert listed == expected, name

    @rule(how=st.sampled_from(["assign", "in place"]))
    def move_the_statistics(self, how: str) -> None:
        """A buffer is written, or replaced by its module, as layers do in their forward."""
        for module in (self.twins.module, self.twins.plain):
            if how == "assign":
                module.running = module.get_buffer("running") + 1.0
            else:
                module.get_buffer("running").add_(1.0)
