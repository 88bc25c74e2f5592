"""What users do to modules: values written in any way, Parameters and buffers replaced."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis.stateful import rule
from torch import nn

from tests.machine.words.common import NAMES, SEEDS, Words, random


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

    @rule(how=st.sampled_from(["assign", "in place"]))
    def move_the_statistics(self, how: str) -> None:
        """A buffer is written, or replaced by its module, as layers do in their forward."""
        for module in (self.twins.module, self.twins.plain):
            if how == "assign":
                module.running = module.get_buffer("running") + 1.0
            else:
                module.get_buffer("running").add_(1.0)
