"""The two that must agree: a module in a store with our optimizer, and a plain module with torch.optim's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv
from tests.parity.lion_reference import Lion

SHAPES: dict[str, tuple[int, ...]] = {
    "w_matrix": (5, 7),
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
}


class Bag(nn.Module):
    """Parameters of all kinds, one of them channels-last, one tied to a second name."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=generator)
            if len(shape) == 4:
                values = values.contiguous(memory_format=torch.channels_last)
            self.register_parameter(name, nn.Parameter(values))
        self.tied = self.bias
        self.register_buffer("running", torch.zeros(3))


@dataclass
class Cycle:
    """What `accumulate` has added up, by the rules of the reference: sums by name, and whether a step used them."""

    sums: dict[str, Tensor]
    spent: bool = False


class Twins:
    """One of each, with the operations of the machine on both."""

    def __init__(self, kind: str, mode: str) -> None:
        ours, theirs, arguments = PAIRS[kind]
        self.kind = kind
        self.plain = Bag()
        self.module = copy.deepcopy(self.plain)
        self.store = fv.VarStore.from_module(self.module, grads=mode)
        groups = [{"params": "w_*", "weight_decay": 0.1}, {"params": "*", "weight_decay": 0.0}]
        self.opt = ours(groups, store=self.store, **arguments)
        named = dict(self.plain.named_parameters())
        decayed = [p for name, p in named.items() if name.startswith("w_")]
        rest = [p for name, p in named.items() if not name.startswith("w_")]
        self.ref = theirs(
            [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], **arguments
        )
        self.mode = mode
        self.masks: dict[str, Tensor] = {}  # True trains
        self.cycle = Cycle({})
        self.used: set[str] = set()  # whose gradients the last step has used
        self.frozen: set[str] = set()

    def names(self) -> list[str]:
        """Of the parameters."""
        return [name for name, variable in self.store.variables().items() if not variable.is_buffer]

    def pairs(self) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
        """Name, ours, theirs."""
        plain = dict(self.plain.named_parameters())
        return [(name, self.store[name].param, plain[name]) for name in self.names()]  # type: ignore[misc]

    # Gradients --------------------------------------------------------------------------------------------------------

    def give(self, name: str, grad: Tensor | None) -> None:
        """Assigns a gradient to both, as a backward pass would after zero_grad."""
        for param in (self.store[name].param, dict(self.plain.named_parameters())[name]):
            param.grad = None if grad is None else grad.clone().to(param.dtype)

    def accumulate(self, scale: float) -> None:
        """`store.accumulate`; in "views" mode gradients stay where they are, which is the stream: masked ones are 0."""
        if self.mode == "views":
            self.store.accumulate()
            for name, _, theirs in self.pairs():
                theirs.grad = None if theirs.grad is None else self.masked(name, theirs.grad)
            return
        pending = {n: t.grad for n, _, t in self.pairs() if t.grad is not None and n not in self.frozen}
        self.store.accumulate(scale=scale)
        if not pending:
            return
        if self.cycle.spent or not self.cycle.sums:
            self.cycle = Cycle({})
        for name, grad in pending.items():
            # Masked elements count for nothing; sums are in float32 at least, before they are scaled.
            wide = self.masked(name, grad * scale)
            before = self.cycle.sums.get(name)
            self.cycle.sums[name] = wide.clone() if before is None else before + wide
        self.drop_plain_grads(set(pending))

    def forget_used(self) -> None:
        """A file holds no gradient that a step has used: what is gone after loading must be one of those."""
        for name, _, theirs in self.pairs():
            had = theirs.grad is not None or name in self.cycle.sums
            if had and self.store[name].grad is None:
                assert name in self.used, f"{name} lost a gradient that no step has used"
                theirs.grad = None
                self.cycle.sums.pop(name, None)

    def drop_plain_grads(self, names: set[str]) -> None:
        for name, _, theirs in self.pairs():
            if name in names:
                theirs.grad = None

    def masked(self, name: str, grad: Tensor) -> Tensor:
        mask = self.masks.get(name)
        return grad if mask is None else torch.where(mask, grad, torch.zeros_like(grad))

    def gradients(self) -> dict[str, Tensor]:
        """What a step of the reference uses: what was accumulated with what is pending, by the store's rules."""
        pending = {n: t.grad for n, _, t in self.pairs() if t.grad is not None and n not in self.frozen}
        if self.cycle.sums and pending:
            if self.cycle.spent:
                self.cycle = Cycle({})
            else:
                self.accumulate(1.0)
                pending = {}
        if self.cycle.sums:
            return {n: g for n, g in self.cycle.sums.items() if n not in self.frozen}
        return {name: self.masked(name, grad) for name, grad in pending.items()}

    # Steps ------------------------------------------------------------------------------------------------------------

    def step(self, max_norm: float | None, skip: bool) -> None:
        """One step of both; gradients are what they were before."""
        grads = self.gradients()
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads.values()]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)
        if self.kind == "amsgrad" and not torch.isfinite(norm):
            skip = True  # torch's own operators do not agree on the larger of a number and NaN
        self.opt.max_norm, self.opt.skip_nonfinite = max_norm, skip
        self.opt.step()
        if not (skip and not torch.isfinite(norm)):
            clip = 1.0 if max_norm is None else torch.clamp(max_norm / (norm + 1e-6), max=1.0)
            self._step_plain({name: (grad.double() * clip).to(grad.dtype) for name, grad in grads.items()})
        self.cycle.spent = True
        self.used = set(grads)

    def _step_plain(self, grads: dict[str, Tensor]) -> None:
        held = {name: theirs.grad for name, _, theirs in self.pairs()}
        kept = {name: self._masked_bits(name) for name in self.masks if name in grads}
        for name, _, theirs in self.pairs():
            theirs.grad = grads[name].to(theirs.dtype) if name in grads else None
        self.ref.step()
        for name, _, theirs in self.pairs():
            theirs.grad = held[name]
            for tensor, before in self._tensors_of(name, kept.get(name, {})):
                tensor.copy_(torch.where(self.masks[name], tensor, before))

    def _masked_bits(self, name: str) -> dict[str, Tensor]:
        theirs = dict(self.plain.named_parameters())[name]
        state = self.ref.state.get(theirs, {})
        tensors = {key: value.clone() for key, value in state.items() if key != "step" and value is not None}
        return {"": theirs.detach().clone(), **tensors}

    def _tensors_of(self, name: str, before: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Value and state of one plain parameter with what they were; state that is new began with zeros."""
        if not before:
            return []
        theirs = dict(self.plain.named_parameters())[name]
        state = {k: v for k, v in self.ref.state.get(theirs, {}).items() if k != "step" and v is not None}
        pairs = [(theirs.detach(), before[""])]
        return pairs + [(value, before.get(key, torch.zeros_like(value))) for key, value in state.items()]

    def forget_state(self, name: str) -> None:
        """What `compact` does to a frozen variable."""
        self.ref.state.pop(dict(self.plain.named_parameters())[name], None)

    def copy_to_plain(self) -> None:
        """Takes our values and state over, so that rounding does not add up over a sequence."""
        for _, ours, theirs in self.pairs():
            theirs.data.copy_(ours.detach())
            state, mine = self.ref.state.get(theirs, {}), self.opt.state[ours]
            for key, value in state.items():
                if isinstance(value, Tensor) and key in mine:
                    value.copy_(mine[key])
