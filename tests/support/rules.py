"""Every rule with the hyper-parameters worth telling apart, and its float64 meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A rule's file names `tl`: the interpreter looks for it there.
from flatvars.kernels.lang import tl  # noqa: F401
from flatvars.kernels.rules import (
    ADAM,
    ADAMW,
    AMSGRAD,
    AMSGRADW,
    LION,
    RMSPROP,
    RMSPROP_CENTERED,
    RMSPROP_CENTERED_MOMENTUM,
    RMSPROP_MOMENTUM,
    SGD,
    SGD_MOMENTUM,
    Rule,
    rule,
)

from . import reference


@rule(states=("age",), hyper=("lr",))
def drift(p, g, state, hyper, step):  # type: ignore[no-untyped-def]
    """Moves zeros in values and state."""
    return p - 1.0 - hyper[0] * g * step, (state[0] + 2.0,)


@dataclass(frozen=True)
class Case:
    """A rule, one param group, and what they mean."""

    rule: Rule
    group: dict[str, Any]
    truth: Callable[..., reference.Update]


def sgd_group(**changed: Any) -> dict[str, Any]:
    plain = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False}
    return {**plain, **changed}


def adam_group(**changed: Any) -> dict[str, Any]:
    plain = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
    return {**plain, **changed}


def lion_group(**changed: Any) -> dict[str, Any]:
    return {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0, "maximize": False, **changed}


def rmsprop_group(**changed: Any) -> dict[str, Any]:
    plain = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False}
    return {**plain, "maximize": False, **changed}


CASES = {
    "sgd": Case(SGD, sgd_group(), reference.sgd),
    "sgd-decay-maximize": Case(SGD, sgd_group(weight_decay=0.1, maximize=True), reference.sgd),
    "momentum": Case(SGD_MOMENTUM, sgd_group(momentum=0.9, weight_decay=0.01), reference.sgd),
    "dampening": Case(SGD_MOMENTUM, sgd_group(momentum=0.8, dampening=0.3), reference.sgd),
    "nesterov": Case(SGD_MOMENTUM, sgd_group(momentum=0.9, nesterov=True, maximize=True), reference.sgd),
    "momentum-zero": Case(SGD_MOMENTUM, sgd_group(dampening=0.5), reference.sgd),
    "adam": Case(ADAM, adam_group(), reference.adam),
    "adam-decay-maximize": Case(ADAM, adam_group(weight_decay=0.1, maximize=True), reference.adam),
    "adam-betas": Case(ADAM, adam_group(betas=(0.0, 0.5), eps=1e-3), reference.adam),
    "adamw": Case(ADAMW, adam_group(weight_decay=0.1), reference.adamw),
    "amsgrad": Case(AMSGRAD, adam_group(amsgrad=True, weight_decay=0.1), reference.adam),
    "amsgrad-off": Case(AMSGRAD, adam_group(), reference.adam),
    "amsgradw": Case(AMSGRADW, adam_group(amsgrad=True, weight_decay=0.1, maximize=True), reference.adamw),
    "lion": Case(LION, lion_group(weight_decay=0.1), reference.lion),
    "lion-maximize": Case(LION, lion_group(maximize=True), reference.lion),
    "rmsprop": Case(RMSPROP, rmsprop_group(weight_decay=0.1, maximize=True), reference.rmsprop),
    "rmsprop-momentum": Case(RMSPROP_MOMENTUM, rmsprop_group(momentum=0.5, alpha=0.5), reference.rmsprop),
    "rmsprop-momentum-zero": Case(RMSPROP_MOMENTUM, rmsprop_group(eps=1e-3), reference.rmsprop),
    "rmsprop-centered": Case(RMSPROP_CENTERED, rmsprop_group(centered=True, alpha=0.7), reference.rmsprop),
    "rmsprop-not-centered": Case(RMSPROP_CENTERED, rmsprop_group(alpha=0.0), reference.rmsprop),
    "rmsprop-both": Case(
        RMSPROP_CENTERED_MOMENTUM,
        rmsprop_group(centered=True, momentum=0.5, alpha=0.7, weight_decay=0.1),
        reference.rmsprop,
    ),
    "user": Case(drift, {"lr": 0.1}, reference.drift),
}
