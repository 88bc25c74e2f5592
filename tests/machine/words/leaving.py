"""Variables that come and go: tied, removed, released and adopted anew, and flags that users flip."""

from __future__ import annotations

from hypothesis.stateful import precondition, rule
from torch import nn

import flatvars as fv
from tests.machine.words.common import NAMES, Words


class LeavingWords(Words):
    def _late(self) -> list[str]:
        """Names that were added later."""
        return [name for name in self.twins.theirs() if "late" in name]

    def _forget(self, name: str) -> None:
        """What the plain optimizers and the model know of one that leaves."""
        twins = self.twins
        theirs = twins.theirs()[name]
        twins.store[name].clear_grad()
        twins.cycle.zero([name])
        twins.cycle.masks.pop(name, None)
        twins.cycle.frozen.discard(name)
        for lane in twins.lanes:
            lane.theirs.state.pop(theirs, None)
            for group in lane.theirs.param_groups:
                group["params"] = [param for param in group["params"] if param is not theirs]

    @rule()
    @precondition(lambda self: self._late())
    def tie(self) -> None:
        """A Parameter is assigned to one more name after adoption: one variable, whose state goes on.

        It is the one that other words never replace at a single name.
        """
        twins, name, other = self.twins, self._late()[-1], "bias"
        self._forget(name)
        twins.store.watch(twins.module)  # which holds it since it was added, as the store need not know
        for module in (twins.module, twins.plain):
            setattr(module, name, module.get_parameter(other))
        twins.store.rebind()
        assert twins.store[name] is twins.store[other]

    @rule()
    @precondition(lambda self: self._late())
    def remove(self) -> None:
        """A variable is taken out; its Parameter keeps its value."""
        twins, name = self.twins, self._late()[0]
        self._forget(name)
        param, value = twins.store[name].param, twins.store[name].value.clone()
        assert twins.store.remove(name) == [name]
        assert param.detach().equal(value) or bool(value.isnan().any())
        for module in (twins.module, twins.plain):
            delattr(module, name)

    @rule()
    @precondition(lambda self: self.twins.has_all_state_in_groups() and not self.twins.cycle.frozen)
    def release_and_adopt_anew(self) -> None:
        """The same module in a new store, under new optimizers that go on from the old ones' state dicts."""
        twins = self.twins
        saved = [lane.ours.state_dict() for lane in twins.lanes]
        held = dict(twins.module.named_parameters())
        former = fv.VarStore.of(twins.module)
        assert former.registry is twins.store.registry
        former.release()
        twins.store = fv.VarStore.from_module(twins.module, grads=twins.mode, buffers=twins.buffers)
        assert all(twins.store[name].param is param for name, param in held.items())
        for lane, state in zip(twins.lanes, saved, strict=True):
            lane.ours = self.like(lane)
            lane.ours.load_state_dict(state)
            lane.patterns = [None] * len(lane.patterns)
        self.mask_again()
        twins.store.zero_grad()
        twins.drop_gradients()

    @rule(name=NAMES)
    def flip(self, name: str) -> None:
        """`requires_grad_` by a user, without the store; a gradient that is there is stepped all the same."""
        if name in self.twins.cycle.frozen:
            return
        ours, theirs = self.twins.pair(name)
        assert isinstance(ours, nn.Parameter)
        for param in (ours, theirs):
            param.requires_grad_(not param.requires_grad)
