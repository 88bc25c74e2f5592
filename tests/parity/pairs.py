"""A module in a store beside an untouched twin: the same gradients to both, and torch.optim as the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import flatvars as fv

from .lion_reference import Lion

# One table for all of tests/parity, as (rtol, atol) of a comparison after at most 20 steps.
TOLERANCES = {
    # The same formula, but torch fuses products and sums, and rounds others in another order: a few ulp (6e-8) a step.
    # `absolute`: an element in 65,536 is what 20 updates of up to 5 leave of each other, each rounded to 2e-7.
    torch.float32: (5e-6, 1e-6),
    # Likewise with ulps of 1.1e-16. torch's own for-loop and fused operator differ by as much.
    torch.float64: (1e-13, 1e-14),
}

# Relative, of two norms: each is a float32 sum, at most 1e-6 from the truth for the lengths here.
NORM_TOLERANCE = 2e-6

# Root mean square error against float64, ours over torch.optim's, for formats where single values may round either way.
# 1.1: two implementations that both round once per step have errors of one size; tenth of it is sampling.
RMS_RATIO = 1.1

OPTIMIZERS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "sgd": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd-decay": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.05}),
    "sgd-maximize": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.1, "maximize": True, "weight_decay": 0.05}),
    "sgd-momentum": (fv.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "sgd-dampening": (
        fv.optim.SGD,
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
    ),
    "sgd-nesterov": (
        fv.optim.SGD,
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ),
    "adam": (fv.optim.Adam, torch.optim.Adam, {"lr": 0.02}),
    "adam-decay": (fv.optim.Adam, torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.05}),
    "adam-amsgrad": (fv.optim.Adam, torch.optim.Adam, {"lr": 0.02, "amsgrad": True, "weight_decay": 0.05}),
    "adam-maximize": (fv.optim.Adam, torch.optim.Adam, {"lr": 0.02, "maximize": True}),
    "adamw": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    "adamw-betas": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "betas": (0.7, 0.95), "eps": 1e-5}),
    "adamw-amsgrad": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "amsgrad": True}),
    "adamw-maximize": (fv.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "maximize": True}),
    # eps: a gradient that weight decay nearly cancels is divided by its own rounding; and 1e-8 is zero in float16.
    "rmsprop": (
        fv.optim.RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.02, "weight_decay": 0.05, "maximize": True, "eps": 1e-3},
    ),
    "rmsprop-momentum": (
        fv.optim.RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.02, "momentum": 0.5, "alpha": 0.5, "eps": 1e-5},
    ),
    "rmsprop-centered": (fv.optim.RMSprop, torch.optim.RMSprop, {"lr": 0.02, "centered": True, "alpha": 0.9}),
    "rmsprop-both": (
        fv.optim.RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.02, "centered": True, "momentum": 0.5, "alpha": 0.9},
    ),
    "adagrad": (fv.optim.Adagrad, torch.optim.Adagrad, {"lr": 0.1}),
    "adagrad-all": (
        fv.optim.Adagrad,
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05, "initial_accumulator_value": 0.5, "maximize": True},
    ),
    "adadelta": (fv.optim.Adadelta, torch.optim.Adadelta, {"lr": 1.0, "eps": 1e-5}),
    "adadelta-decay": (
        fv.optim.Adadelta,
        torch.optim.Adadelta,
        {"lr": 0.5, "rho": 0.7, "eps": 1e-5, "weight_decay": 0.05, "maximize": True},
    ),
    "adamax": (fv.optim.Adamax, torch.optim.Adamax, {"lr": 0.02}),
    "adamax-decay": (
        fv.optim.Adamax,
        torch.optim.Adamax,
        {"lr": 0.02, "betas": (0.3, 0.9), "weight_decay": 0.05, "maximize": True},
    ),
    "nadam": (fv.optim.NAdam, torch.optim.NAdam, {"lr": 0.02, "weight_decay": 0.05, "eps": 1e-5}),
    "nadam-decoupled": (
        fv.optim.NAdam,
        torch.optim.NAdam,
        {"lr": 0.02, "momentum_decay": 0.1, "weight_decay": 0.05, "decoupled_weight_decay": True, "maximize": True},
    ),
    "radam": (fv.optim.RAdam, torch.optim.RAdam, {"lr": 0.02, "weight_decay": 0.05}),
    "radam-decoupled": (
        fv.optim.RAdam,
        torch.optim.RAdam,
        {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.05, "decoupled_weight_decay": True, "maximize": True},
    ),
    "rprop": (fv.optim.Rprop, torch.optim.Rprop, {"lr": 0.02}),
    "rprop-all": (
        fv.optim.Rprop,
        torch.optim.Rprop,
        {"lr": 0.02, "etas": (0.3, 1.5), "step_sizes": (0.01, 0.1), "maximize": True},
    ),
    "asgd": (fv.optim.ASGD, torch.optim.ASGD, {"lr": 0.1}),
    "asgd-averaging": (
        fv.optim.ASGD,
        torch.optim.ASGD,
        {"lr": 0.1, "lambd": 0.05, "t0": 2.0, "weight_decay": 0.05, "maximize": True},
    ),
    "lion": (fv.optim.Lion, Lion, {"lr": 0.02}),
    "lion-decay": (fv.optim.Lion, Lion, {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95), "maximize": True}),
}
"""Ours, the truth, and the arguments of both."""

# Those that torch steps with an operator that rounds once.
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)

# torch keeps a scalar of these in float32 whatever the parameters are, and so does flatvars: what is rounded into it
# differs by an ulp (6e-8), which is what then differs of an update.
FLOAT32_SCALARS = ("nadam", "nadam-decoupled", "asgd", "asgd-averaging")

# torch's fused SGD with momentum fails where a variable gets its first gradient later than another.
FLAVOR: dict[type, dict[str, Any]] = {
    torch.optim.SGD: {"foreach": False},
    torch.optim.Adam: {"fused": True},
    torch.optim.AdamW: {"fused": True},
    torch.optim.RMSprop: {"foreach": False},
    torch.optim.Adagrad: {"foreach": False},
    torch.optim.Adadelta: {"foreach": False},
    torch.optim.Adamax: {"foreach": False},
    torch.optim.NAdam: {"foreach": False},
    torch.optim.RAdam: {"foreach": False},
    torch.optim.Rprop: {"foreach": False},
    torch.optim.ASGD: {"foreach": False},
    Lion: {},
}

MODES = ("gather", "views")


@dataclass
class Pair:
    """`ours` lies in `store` and is stepped by `opt`; `theirs` is a plain twin stepped by `ref`."""

    ours: nn.Module
    theirs: nn.Module
    store: fv.VarStore
    opt: Any = None
    ref: Any = None

    @classmethod
    def of(cls, module: nn.Module, optimizer: str | None = None, mode: str = "gather", **options: Any) -> Pair:
        """Adopts `module`; with `optimizer`, also makes that row of OPTIMIZERS for both."""
        theirs = copy.deepcopy(module)
        pair = cls(module, theirs, fv.VarStore.from_module(module, grads=mode))
        if optimizer is not None:
            our_class, their_class, arguments = OPTIMIZERS[optimizer]
            pair.opt = our_class(pair.store, **arguments, **options)
            pair.ref = their_class(theirs.parameters(), **arguments, **FLAVOR[their_class])
        return pair

    def backward(self, generator: torch.Generator, skip: Collection[str] = ()) -> None:
        """Adds one random gradient to every variable that is trainable and not in `skip`, through autograd."""
        twins = dict(self.theirs.named_parameters())
        for name, param in self.ours.named_parameters():
            if name in skip or not param.requires_grad:
                continue
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            for target in (param, twins[name]):
                torch.autograd.backward([target], [torch.empty_like(target).copy_(grad)])

    def both(self, call: Callable[[nn.Module], Tensor]) -> None:
        """Runs a loss backward on both twins."""
        for module in (self.ours, self.theirs):
            call(module).backward()

    def step(self) -> None:
        self.opt.step()
        self.ref.step()

    def zero_grad(self) -> None:
        self.opt.zero_grad()
        self.ref.zero_grad()

    def run(self, steps: int, seed: int = 1, skip: Callable[[int], Collection[str]] = lambda step: ()) -> None:
        """Zeroes, adds random gradients and steps, `steps` times; `skip(step)` names what gets no gradient."""
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            self.zero_grad()
            self.backward(generator, skip(step))
            self.step()

    def assert_values_close(self, bound: tuple[float, float] | None = None) -> None:
        twins = dict(self.theirs.named_parameters())
        for name, param in self.ours.named_parameters():
            assert_close(param.detach(), twins[name].detach(), name, bound)

    def assert_states_close(self, bound: tuple[float, float] | None = None) -> None:
        """The state dicts have the same entries, the same keys and close values."""
        ours, theirs = self.opt.state_dict()["state"], self.ref.state_dict()["state"]
        ours = {index: state for index, state in ours.items() if state}  # looking at a state makes an empty one
        assert ours.keys() == {index for index, state in theirs.items() if state}
        for index, state in ours.items():
            assert state.keys() == theirs[index].keys()
            for key, value in state.items():
                assert_close(value, theirs[index][key], f"{index}.{key}", bound)


def assert_close(actual: Tensor, expected: Tensor, what: str, bound: tuple[float, float] | None = None) -> None:
    """Within the table's tolerance of the dtype, or another one."""
    rtol, atol = bound or TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def assert_no_worse(ours: Iterable[Tensor], theirs: Iterable[Tensor], truth: Iterable[Tensor]) -> None:
    """The error against float64 is no larger than torch.optim's in the same dtype."""
    exact = _flat(truth)
    our_error = (_flat(ours) - exact).square().mean().sqrt()
    their_error = (_flat(theirs) - exact).square().mean().sqrt()
    assert our_error <= RMS_RATIO * their_error, f"error {our_error:.3e} against torch.optim's {their_error:.3e}"


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])
