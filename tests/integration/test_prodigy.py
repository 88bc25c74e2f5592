"""Prodigy beside its authors' code in float64, its distance in copies, files and skipped steps."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flatvars as fv
from tests.support.tolerances import assert_same_bits

SHAPES = {"matrix": (12, 5), "long": (2100,), "scalar": ()}


class Reference:
    """konstmish/prodigy, prodigyopt/prodigy.py, in float64; bias corrections by the step of all."""

    def __init__(self, values: dict[str, Tensor], **options: Any) -> None:
        self.p = {name: value.detach().double().clone() for name, value in values.items()}
        self.p0 = {name: value.clone() for name, value in self.p.items()}
        self.m, self.v, self.s = ({n: torch.zeros_like(p) for n, p in self.p.items()} for _ in range(3))
        self.o = {"betas": (0.9, 0.999), "beta3": None, "eps": 1e-8, "weight_decay": 0.0, "decouple": True}
        self.o |= {"use_bias_correction": False, "safeguard_warmup": False, "d0": 1e-6, "d_coef": 1.0}
        self.o |= {"growth_rate": math.inf, **options}
        self.d = self.d_max = self.o["d0"]
        self.numerator, self.k = 0.0, 0

    def step(self, grads: dict[str, Tensor], lr: float) -> None:
        o, (beta1, beta2) = self.o, self.o["betas"]
        beta3 = math.sqrt(beta2) if o["beta3"] is None else o["beta3"]
        corrected = 1.0
        if o["use_bias_correction"]:
            corrected = math.sqrt(1 - beta2 ** (self.k + 1)) / (1 - beta1 ** (self.k + 1))
        d, dlr = self.d, self.d * lr * corrected
        numerator, denominator = self.numerator * beta3, 0.0
        for name, g in grads.items():
            g = g.double()
            if o["weight_decay"] and not o["decouple"]:
                g = g + o["weight_decay"] * self.p[name]
            numerator += (d / o["d0"]) * dlr * float((g * (self.p0[name] - self.p[name])).sum())
            self.m[name] = beta1 * self.m[name] + d * (1 - beta1) * g
            self.v[name] = beta2 * self.v[name] + d * d * (1 - beta2) * g * g
            self.s[name] = beta3 * self.s[name] + (d / o["d0"]) * (d if o["safeguard_warmup"] else dlr) * g
            denominator += float(self.s[name].abs().sum())
        if denominator == 0:
            return
        estimate = o["d_coef"] * numerator / denominator
        if d == o["d0"]:
            d = max(d, estimate)
        self.d_max = max(self.d_max, estimate)
        self.d, self.numerator, self.k = min(self.d_max, d * o["growth_rate"]), numerator, self.k + 1
        for name in grads:
            if o["weight_decay"] and o["decouple"]:
                self.p[name] = self.p[name] * (1 - o["weight_decay"] * dlr)
            self.p[name] = self.p[name] - dlr * self.m[name] / (self.v[name].sqrt() + self.d * o["eps"])


class Run:
    def __init__(self, names: tuple[str, ...] = tuple(SHAPES), dtype: torch.dtype = torch.float32, **options: Any):
        self.store = fv.VarStore()
        for name in names:
            generator = torch.Generator().manual_seed(len(name))
            self.store.add(name, torch.randn(SHAPES[name], generator=generator, dtype=torch.float64).to(dtype))
        self.params = {name: self.store[name].param for name in names}
        self.opt = fv.optim.Prodigy(self.store, **options)

    def gradients(self, step: int) -> dict[str, Tensor]:
        """Of a quadratic around other values, with zeros among them."""
        found = {}
        for name, param in self.params.items():
            grad = param.detach() - 0.5
            found[name] = torch.where(grad.abs() < 0.05 * step, torch.zeros_like(grad), grad)
        return found

    def step(self, step: int, lr: float = 1.0) -> dict[str, Tensor]:
        grads = self.gradients(step)
        for name, grad in grads.items():
            self.params[name].grad = grad.clone()
        self.opt.param_groups[0]["lr"] = lr
        self.opt.step()
        return grads

    def d(self) -> float:
        return float(self.opt.param_groups[0]["d"])


@pytest.mark.parametrize(
    "options",
    [
        {"d0": 1e-3},
        {"d0": 1e-3, "weight_decay": 0.1, "use_bias_correction": True, "growth_rate": 1.5},
        {"d0": 1e-2, "weight_decay": 0.1, "decouple": False, "safeguard_warmup": True, "d_coef": 2.0, "beta3": 0.9},
    ],
    ids=["plain", "corrected", "coupled"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_those_of_the_authors(options: dict[str, Any], dtype: torch.dtype) -> None:
    run = Run(dtype=dtype, **options)
    reference = Reference(run.params, **options)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-11
    for step in range(8):
        lr = 1.0 - 0.1 * step
        reference.step(run.step(step, lr), lr)
        # In float32, how far values have come is a difference of numbers that are nearly equal.
        assert run.d() == pytest.approx(reference.d, rel=10 * tolerance)
        for name, param in run.params.items():
            torch.testing.assert_close(param.detach().double(), reference.p[name], rtol=tolerance, atol=tolerance)
    assert run.d() > 2 * options["d0"]


def test_gradients_of_zero_move_nothing_but_counts() -> None:
    run = Run(weight_decay=0.5)
    before = {name: param.detach().clone() for name, param in run.params.items()}
    for param in run.params.values():
        param.grad = torch.zeros_like(param)
    run.opt.step()
    assert run.d() == 1e-6
    for name, param in run.params.items():
        assert_same_bits(param.detach(), before[name])


def test_order_shows_in_no_bit_and_a_skipped_step_moves_no_distance() -> None:
    runs = [Run(d0=1e-2, skip_nonfinite=True), Run(tuple(reversed(SHAPES)), d0=1e-2, skip_nonfinite=True)]
    for step in range(4):
        for run in runs:
            run.step(step)
    runs[1].params["long"].grad = torch.full((2100,), torch.inf)
    runs[1].opt.step()
    for run in runs:
        run.step(5)
    assert runs[0].d() == runs[1].d()
    for name, param in runs[0].params.items():
        assert_same_bits(param.detach(), runs[1].params[name].detach())


@pytest.mark.parametrize("way", ["file", "deepcopy", "state_dict"])
def test_the_distance_goes_on(way: str, tmp_path: Path) -> None:
    run = Run(d0=1e-2)
    for step in range(3):
        run.step(step)
    twin = Run(d0=1e-2)
    twin.step(7)
    if way == "file":
        run.store.save(tmp_path / "run.safetensors", run.opt)
        twin.store.load(tmp_path / "run.safetensors", twin.opt)
    elif way == "state_dict":
        twin.store.copy_(run.store)
        twin.opt.load_state_dict(run.opt.state_dict())
    else:
        twin.store, twin.opt = copy.deepcopy((run.store, run.opt))
        twin.params = {name: twin.store[name].param for name in SHAPES}
    assert twin.d() == run.d() > 1e-2
    for step in range(3, 6):
        run.step(step)
        twin.step(step)
    assert twin.d() == run.d()
    for name, param in run.params.items():
        assert_same_bits(param.detach(), twin.params[name].detach())


def test_groups_share_the_distance_and_the_rate() -> None:
    store = fv.VarStore()
    for name in ("a", "b"):
        store.add(name, torch.ones(3)).grad = torch.ones(3)
    optimizer = fv.optim.Prodigy([{"params": "a"}, {"params": "b", "weight_decay": 0.1}], store=store, d0=1e-2)
    optimizer.step()
    assert optimizer.param_groups[0]["d"] is optimizer.param_groups[1]["d"]
    saved = optimizer.state_dict()["param_groups"][0]["d"]
    before = float(saved)
    for _ in range(3):
        optimizer.step()
    assert float(saved) == before
    optimizer.param_groups[1]["lr"] = 0.5
    with pytest.raises(ValueError, match="one rate for all"):
        optimizer.step()


@pytest.mark.parametrize(
    "wrong", [{"betas": (1.5, 0.9)}, {"d_coef": -1.0}, {"beta3": 2.0}, {"d0": 0.0}], ids=lambda wrong: next(iter(wrong))
)
def test_numbers_are_looked_at_in_every_step(wrong: dict[str, Any]) -> None:
    """Also when d is a tensor on the device, as it is from the first step on: that one is not read."""
    run = Run(d0=1e-2)
    run.step(0)
    before, d = run.store.values.clone(), run.d()
    run.opt.param_groups[0].update(wrong)
    with pytest.raises(ValueError, match=r"Invalid"):
        run.step(1)
    assert_same_bits(run.store.values, before)
    assert run.d() == d
