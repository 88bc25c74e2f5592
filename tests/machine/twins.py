"""The two that must agree: a module in a store with our optimizers, and a plain module with torch.optim's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv
from tests.machine.cycle import Cycle, Grads
from tests.parity.lion_reference import Lion

SHAPES: dict[str, tuple[int, ...]] = {
    "w_matrix": (5, 7),
    "w_other": (5, 7),
    "w_image": (2, 3, 2, 2),
    "w_tile": (2_100,),
    "bias": (5,),
    "scalar": (),
    "empty": (0, 3),
}

# Ours and torch's, with the same arguments.
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "sgd": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.05}),
    "momentum": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (fv.optim.Adam, torch.optim.Adam, {"lr": 0.01, "eps": 1e-3}),
    "amsgrad": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3, "amsgrad": True}),
    "rmsprop": (fv.optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "eps": 1e-2, "momentum": 0.5}),
    "lion": (fv.optim.Lion, Lion, {"lr": 0.01}),
    "adamw": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3, "betas": (0.8, 0.99)}),
    "adamax": (fv.optim.Adamax, torch.optim.Adamax, {"lr": 0.01, "eps": 1e-3}),
}

Pattern = Callable[[str], bool]


class Bag(nn.Module):
    """Parameters of all kinds, one of them channels-last, one tied to a second name, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float32)
            if len(shape) == 4:
                values = values.contiguous(memory_format=torch.channels_last)
            self.register_parameter(name, nn.Parameter(values))
        self.tied = self.bias
        self.register_buffer("running", torch.zeros(3, dtype=torch.float32))


@dataclass
class Lane:
    """One optimizer of each.

    Attributes:
        patterns: By param group, which variables join it that are declared later; None where none does.
    """

    kind: str
    ours: Any
    theirs: Any
    patterns: list[Pattern | None]

    @property
    def both(self) -> tuple[Any, Any]:
        return self.ours, self.theirs


def is_decayed(name: str) -> bool:
    return name.startswith("w_")


def is_rest(name: str) -> bool:
    return not is_decayed(name)


class Twins:
    """One of each, with what the words are made of.

    Args:
        kinds: Of the optimizers: one with two param groups, or two that share the variables.
        mode: Of gradients.
        buffers: Whether the store takes the module's buffer.
    """

    def __init__(self, kinds: list[str], mode: str, buffers: bool) -> None:
        self.plain: nn.Module = Bag()
        self.module: nn.Module = copy.deepcopy(self.plain)
        self.buffers = buffers
        self.store = fv.VarStore.from_module(self.module, grads=mode, buffers=buffers)
        self.mode = mode
        self.cycle = Cycle(mode, self.theirs)
        groups = [({"params": "w_*", "weight_decay": 0.1}, is_decayed)]
        groups += [({"params": fv.select("*", exclude=["w_*"]), "weight_decay": 0.0}, is_rest)]
        parts = [groups] if len(kinds) == 1 else [[group] for group in groups]
        self.lanes = [self._lane(kind, part) for kind, part in zip(kinds, parts, strict=True)]

    def _lane(self, kind: str, groups: list[tuple[dict[str, Any], Pattern]]) -> Lane:
        ours, theirs, arguments = PAIRS[kind]
        named = self.theirs()
        twins = [{**group, "params": [named[n] for n in named if pattern(n)]} for group, pattern in groups]
        mine = ours([group for group, _ in groups], store=self.store, **arguments)
        return Lane(kind, mine, theirs(twins, **arguments), [pattern for _, pattern in groups])

    # Names ------------------------------------------------------------------------------------------------------------

    def theirs(self) -> dict[str, nn.Parameter]:
        return dict(self.plain.named_parameters())

    def pairs(self) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
        """Name, ours, theirs."""
        return [(name, self.store[name].param, theirs) for name, theirs in self.theirs().items()]  # type: ignore[misc]

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        return self.store[name].param, self.theirs()[name]  # type: ignore[return-value]

    def members(self, lane: Lane) -> list[str]:
        """Names of what an optimizer steps."""
        names = {id(theirs): name for name, theirs in self.theirs().items()}
        return [names[id(param)] for group in lane.theirs.param_groups for param in group["params"]]

    def has_all_state_in_groups(self) -> bool:
        """torch makes no state dict of an optimizer that keeps state of what is in none of its groups."""
        return all(
            {id(param) for param in lane.theirs.state} <= {id(self.theirs()[name]) for name in self.members(lane)}
            for lane in self.lanes
        )

    # Gradients --------------------------------------------------------------------------------------------------------

    def give(self, name: str, grad: Tensor | None) -> None:
        """Assigns a gradient to both, as a backward pass would after zero_grad."""
        for param in self.pair(name):
            param.grad = None if grad is None else grad.clone().to(param.dtype)
        self.cycle.used.discard(name)

    def drop_gradients(self) -> None:
        self.cycle.zero(self.theirs())

    def lose_used(self) -> None:
        """A file holds no gradient that a step has used: what is gone after loading must be one of those."""
        for name in self.theirs():
            if self.cycle.seen(name) is not None and self.store[name].grad is None:
                assert self.cycle.is_used(name), f"{name} lost a gradient that no step has used"
                self.cycle.zero([name])

    # Steps ------------------------------------------------------------------------------------------------------------

    def step(self, lane: Lane, max_norm: float | None, skip: bool, zero_grad: bool = False) -> None:
        """One step of both; gradients are what they were before, or dropped by ours if `zero_grad`."""
        grads = self.cycle.collect(self.members(lane))
        norm = self.cycle.norm(grads)
        # torch's own operators do not agree on the larger of a number and NaN; and the sign of NaN, which is NaN to us,
        # is 0 to torch.
        if lane.kind in ("amsgrad", "adamax", "lion") and not torch.isfinite(norm):
            skip = True
        lane.ours.max_norm, lane.ours.skip_nonfinite = max_norm, skip
        lane.ours.step(zero_grad=zero_grad)
        if max_norm is not None or skip:
            taken = lane.ours.grad_norm.double()
            torch.testing.assert_close(taken, norm, rtol=1e-5, atol=1e-12, equal_nan=True)
        if not (skip and not torch.isfinite(norm)):
            clip = torch.ones_like(norm) if max_norm is None else torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            self._step_plain(lane, {name: (grad.double() * clip).to(grad.dtype) for name, grad in grads.items()})
        self.cycle.spend(grads)

    def _step_plain(self, lane: Lane, grads: Grads) -> None:
        """torch's step with these gradients, and back to what was where elements are masked."""
        theirs = self.theirs()
        held = {name: theirs[name].grad for name in self.members(lane)}
        before = {name: self._tensors(lane, name) for name in self.cycle.masks if name in grads}
        kept = {name: {key: tensor.clone() for key, tensor in tensors.items()} for name, tensors in before.items()}
        for name in held:
            theirs[name].grad = grads[name].to(theirs[name].dtype) if name in grads else None
        lane.theirs.step()
        for name, grad in held.items():
            theirs[name].grad = grad
        for name, tensors in kept.items():
            for key, tensor in self._tensors(lane, name).items():
                old = tensors.get(key, torch.zeros_like(tensor))  # new state began with zeros
                tensor.copy_(torch.where(self.cycle.masks[name], tensor, old))

    def _tensors(self, lane: Lane, name: str) -> dict[str, Tensor]:
        """Value and state of one plain parameter, but for its step count."""
        theirs = self.theirs()[name]
        state = lane.theirs.state.get(theirs, {})
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
        return {"": theirs.detach(), **tensors}

    def copy_to_plain(self) -> None:
        """Takes our values and state over, so that rounding does not add up over a sequence."""
        for _, ours, theirs in self.pairs():
            theirs.data.copy_(ours.detach())
            for lane in self.lanes:
                mine = lane.ours.state.get(ours, {})
                for key, value in lane.theirs.state.get(theirs, {}).items():
                    if isinstance(value, Tensor) and isinstance(mine.get(key), Tensor):
                        value.copy_(mine[key])
