"""Lazy layers: adopted without a shape, taken in with the first look after the forward pass that gave them one."""

from __future__ import annotations

import copy
import warnings

import hypothesis.strategies as st
import torch
from hypothesis.stateful import precondition, rule
from torch import nn

from tests.machine.words.common import LOOKS, SEEDS, random
from tests.machine.words.files import FileWords
from tests.machine.words.gradients import GradientWords
from tests.machine.words.masks import MaskWords
from tests.machine.words.store import StoreWords


class LazyWords(FileWords, GradientWords, MaskWords, StoreWords):
    """What comes while a layer is lazy is said in words of theirs.

    Attributes:
        layers: How many lazy ones were added.
    """

    layers = 0

    @rule(
        seed=SEEDS,
        before=st.sampled_from(["", "norm", "save", "snapshot", "zero", "deepcopy", "compact"]),
        graded=st.booleans(),
        look=LOOKS,
    )
    @precondition(lambda self: self.layers < 2)
    def add_a_lazy_layer(self, seed: int, before: str, graded: bool, look: str) -> None:
        """Its variables join the first group of each optimizer whose pattern fits them."""
        twins, name = self.twins, f"lazy{self.layers}"
        self.layers += 1
        dtype = twins.theirs()["bias"].dtype
        twins.module.add_module(name, nn.LazyLinear(3, dtype=dtype))
        twins.store.add_module(twins.module.get_submodule(name), name)
        self._look_while_lazy(before)
        layer = twins.module.get_submodule(name)
        assert not [found for found in twins.store.variables() if found.startswith(f"{name}.")]
        values = random((2, 7), seed, dtype)
        with torch.no_grad():
            layer(values)
            for number, param in enumerate(layer.parameters()):
                param.copy_(random(param.shape, seed + number, dtype))
        twin = copy.deepcopy(layer)
        twins.plain.add_module(name, twin)
        for one in (layer, twin) if graded else ():
            one(values).square().sum().backward()
        self._join(name, twin)
        self.look(look)

    def _look_while_lazy(self, how: str) -> None:
        """What comes while the layer has no shape, and changes nothing of what the others hold."""
        twins = self.twins
        if how == "norm":
            twins.store.grad_norm()
            twins.cycle.collect()
        elif how in ("save", "snapshot"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", r".*lazy: taken in after the first forward pass")
                self.save_and_load() if how == "save" else self.snapshot_and_restore()
        elif how == "zero":
            self.zero_grad_of_the_store()
        elif how == "deepcopy":
            self.go_on_with_a_deepcopy()
        elif how == "compact":
            self.compact()

    def _join(self, name: str, twin: nn.Module) -> None:
        for key, theirs in twin.named_parameters():
            for lane in self.twins.lanes:
                found = enumerate(lane.patterns)
                fitting = [k for k, pattern in found if pattern is not None and pattern(f"{name}.{key}")]
                if fitting:
                    lane.theirs.param_groups[fitting[0]]["params"].append(theirs)
