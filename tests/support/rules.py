"""Every rule with the hyper-parameters worth telling apart, and its float64 meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A rule's file names `tl`: the interpreter looks for it there.
from flatvars.kernels.lang import tl  # noqa: F401
from flatvars.kernels.rules import (
    ADADELTA,
    ADAFACTOR,
    ADAFACTOR_GRADIENT,
    ADAGRAD,
    ADAM,
    ADAMAX,
    ADAMW,
    ADAN,
    ADEMAMIX,
    ADOPT,
    AMSGRAD,
    AMSGRADW,
    ASGD,
    GRAMS,
    LAMB,
    LARS,
    LION,
    MARS,
    NADAM,
    PRODIGY,
    RADAM,
    RMSPROP,
    RMSPROP_CENTERED,
    RMSPROP_CENTERED_MOMENTUM,
    RMSPROP_MOMENTUM,
    RPROP,
    SCHEDULE_FREE_ADAMW,
    SCHEDULE_FREE_SGD,
    SGD,
    SGD_MOMENTUM,
    STABLE_ADAMW,
    Rule,
    averaged,
    cautious_updates,
    rule,
    with_decay,
)

from . import beyond_torch, elementwise, reference


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


def group_of(defaults: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {"lr": 0.01, "weight_decay": 0.0, "maximize": False, **defaults, **changed}


ADAGRAD_GROUP = {"lr_decay": 0.0, "eps": 1e-10, "initial_accumulator_value": 0.0}
ADADELTA_GROUP = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}
ADAMAX_GROUP = {"betas": (0.9, 0.999), "eps": 1e-8}
RADAM_GROUP = {**ADAMAX_GROUP, "decoupled_weight_decay": False}
NADAM_GROUP = {**RADAM_GROUP, "momentum_decay": 4e-3}
RPROP_GROUP = {"etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)}
ADOPT_GROUP = {"betas": (0.9, 0.9999), "eps": 1e-6, "clip_exponent": 0.25, "decoupled_weight_decay": False}
ADEMAMIX_GROUP = {
    "betas": (0.9, 0.999, 0.9999),
    "alpha": 2.0,
    "eps": 1e-8,
    "alpha_warmup": None,
    "beta3_warmup": None,
}
ADAN_GROUP = {"betas": (0.98, 0.92, 0.99), "eps": 1e-8, "no_prox": False}
SCHEDULE_FREE_GROUP = {"warmup_steps": 0, "r": 0.0, "weight_lr_power": 2.0}
LAMB_GROUP = {
    **ADAMAX_GROUP,
    "eps": 1e-6,
    "grad_averaging": True,
    "bias_correction": True,
    "always_adapt": False,
}
LARS_GROUP = {
    "momentum": 0.9,
    "dampening": 0.0,
    "nesterov": False,
    "trust_coeff": 1e-3,
    "trust_clip": False,
    "eps": 1e-8,
}
PRODIGY_GROUP = {
    "betas": (0.9, 0.999),
    "beta3": None,
    "eps": 1e-8,
    "decouple": True,
    "use_bias_correction": False,
    "safeguard_warmup": False,
    "d": 0.25,
    "d0": 0.125,
    "next_d": 0.25,
}
ASGD_GROUP = {"lambd": 1e-4, "alpha": 0.75, "t0": 1e6}


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
    "adagrad": Case(ADAGRAD, group_of(ADAGRAD_GROUP), elementwise.adagrad),
    "adagrad-all": Case(
        ADAGRAD,
        group_of(ADAGRAD_GROUP, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5, maximize=True),
        elementwise.adagrad,
    ),
    "adadelta": Case(ADADELTA, group_of(ADADELTA_GROUP, rho=0.7, weight_decay=0.1), elementwise.adadelta),
    "adamax": Case(ADAMAX, group_of(ADAMAX_GROUP, betas=(0.3, 0.9), maximize=True), elementwise.adamax),
    "nadam": Case(NADAM, group_of(NADAM_GROUP, weight_decay=0.1), elementwise.nadam),
    "nadam-decoupled": Case(
        NADAM,
        group_of(NADAM_GROUP, weight_decay=0.1, momentum_decay=0.1, decoupled_weight_decay=True, maximize=True),
        elementwise.nadam,
    ),
    "radam": Case(RADAM, group_of(RADAM_GROUP, weight_decay=0.1), elementwise.radam),
    "radam-decoupled": Case(
        RADAM, group_of(RADAM_GROUP, betas=(0.9, 0.5), weight_decay=0.1, decoupled_weight_decay=True), elementwise.radam
    ),
    "rprop": Case(RPROP, group_of(RPROP_GROUP), elementwise.rprop),
    "rprop-maximize": Case(
        RPROP, group_of(RPROP_GROUP, etas=(0.3, 1.5), step_sizes=(0.02, 0.1), maximize=True), elementwise.rprop
    ),
    "asgd": Case(ASGD, group_of(ASGD_GROUP), elementwise.asgd),
    "asgd-all": Case(ASGD, group_of(ASGD_GROUP, lambd=0.05, t0=1.0, weight_decay=0.1, maximize=True), elementwise.asgd),
    "adamw-cautious-decay": Case(
        with_decay(ADAMW, "cautious"),
        adam_group(weight_decay=0.5, cautious_decay=True, maximize=True),
        beyond_torch.cautious_adamw,
    ),
    "adamw-not-cautious": Case(with_decay(ADAMW, "cautious"), adam_group(weight_decay=0.5), reference.adamw),
    "lion-cautious-decay": Case(
        with_decay(LION, "cautious"), lion_group(weight_decay=0.5, cautious_decay=True), beyond_torch.cautious_lion
    ),
    "adopt": Case(ADOPT, group_of(ADOPT_GROUP, weight_decay=0.1), beyond_torch.adopt),
    "adopt-decoupled": Case(
        ADOPT,
        group_of(ADOPT_GROUP, weight_decay=0.1, decoupled_weight_decay=True, clip_exponent=None, maximize=True),
        beyond_torch.adopt,
    ),
    "ademamix": Case(ADEMAMIX, group_of(ADEMAMIX_GROUP), beyond_torch.ademamix),
    "ademamix-warmup": Case(
        ADEMAMIX,
        group_of(ADEMAMIX_GROUP, alpha=5.0, alpha_warmup=3, beta3_warmup=10, weight_decay=0.1, maximize=True),
        beyond_torch.ademamix,
    ),
    "grams": Case(GRAMS, group_of(ADAMAX_GROUP, eps=1e-6, weight_decay=0.1), beyond_torch.grams),
    "adan": Case(ADAN, group_of(ADAN_GROUP, weight_decay=0.1), beyond_torch.adan),
    "adan-no-prox": Case(ADAN, group_of(ADAN_GROUP, weight_decay=0.1, no_prox=True, maximize=True), beyond_torch.adan),
    "schedule-free-adamw": Case(
        SCHEDULE_FREE_ADAMW,
        group_of(SCHEDULE_FREE_GROUP, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
        beyond_torch.schedule_free_adamw,
    ),
    "schedule-free-sgd": Case(
        SCHEDULE_FREE_SGD,
        group_of(SCHEDULE_FREE_GROUP, lr=0.5, momentum=0.9, r=0.5, warmup_steps=5, maximize=True),
        beyond_torch.schedule_free_sgd,
    ),
    "stable-adamw": Case(
        STABLE_ADAMW,
        group_of({"betas": (0.9, 0.99), "eps": 1e-6}, weight_decay=0.1, maximize=True),
        beyond_torch.stable_adamw,
    ),
    "lamb": Case(LAMB, group_of(LAMB_GROUP, weight_decay=0.1), beyond_torch.lamb),
    "lamb-always": Case(
        LAMB,
        group_of(LAMB_GROUP, always_adapt=True, grad_averaging=False, bias_correction=False, maximize=True),
        beyond_torch.lamb,
    ),
    "lamb-plain": Case(LAMB, group_of(LAMB_GROUP), beyond_torch.lamb),
    "mars": Case(
        MARS, group_of({"betas": (0.95, 0.99), "eps": 1e-8, "gamma": 0.025}, weight_decay=0.1), beyond_torch.mars
    ),
    "mars-plain": Case(
        MARS, group_of({"betas": (0.9, 0.95), "eps": 1e-8, "gamma": 0.0}, maximize=True), beyond_torch.mars
    ),
    "lars": Case(LARS, group_of(LARS_GROUP, lr=0.5, weight_decay=0.1), beyond_torch.lars),
    "larc": Case(
        LARS,
        group_of(LARS_GROUP, lr=0.5, trust_coeff=0.5, trust_clip=True, nesterov=True, maximize=True),
        beyond_torch.lars,
    ),
    "adafactor": Case(
        ADAFACTOR, group_of({"eps": (None, 1e-3), "d": 1.5}, weight_decay=0.1, maximize=True), beyond_torch.adafactor
    ),
    "adafactor-gradient": Case(ADAFACTOR_GRADIENT, {}, lambda p, g, states, group, step: (g, states)),
    "cautious-updates": Case(
        cautious_updates(ADAMW), adam_group(weight_decay=0.1, cautious=True), beyond_torch.cautious_updates
    ),
    "cautious-updates-off": Case(
        cautious_updates(ADAMW), adam_group(weight_decay=0.1, cautious=False), beyond_torch.cautious_updates
    ),
    "prodigy": Case(
        PRODIGY,
        group_of(PRODIGY_GROUP, lr=0.1, weight_decay=0.1, decouple=False, use_bias_correction=True),
        beyond_torch.prodigy,
    ),
    "prodigy-plain": Case(
        PRODIGY, group_of(PRODIGY_GROUP, lr=0.5, weight_decay=0.1, beta3=0.9, next_d=0.3), beyond_torch.prodigy
    ),
    "ema-adamw": Case(
        averaged(ADAMW, "constant"),
        adam_group(weight_decay=0.1, ema_decay=0.8),
        beyond_torch.averaged(reference.adamw, "constant"),
    ),
    "ema-lamb": Case(
        averaged(LAMB, "power"),
        group_of(LAMB_GROUP, weight_decay=0.1, ema_gamma=1.5),
        beyond_torch.averaged(beyond_torch.lamb, "power"),
    ),
    "ema-nadam": Case(
        averaged(NADAM, "tensorflow"),
        group_of(NADAM_GROUP, ema_decay=0.25),
        beyond_torch.averaged(elementwise.nadam, "tensorflow"),
    ),
    "ema-sgd": Case(
        averaged(SGD, "warmup"),
        sgd_group(ema_decay=0.9, ema_min_decay=0.2, ema_gamma=2.0, ema_power=0.75, ema_after=1),
        beyond_torch.averaged(reference.sgd, "warmup"),
    ),
    "user": Case(drift, {"lr": 0.1}, reference.drift),
}

RULES = {case.rule: name for name, case in reversed(CASES.items())}
ONE_EACH = list(reversed(RULES.values()))
"""Names of one case of every rule: its first."""
