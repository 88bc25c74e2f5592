"""Slow averages in bfloat16 decay as they do in float32; a run that is resumed draws as the one that went on."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

# Each state that decays by less than half of bfloat16's last bit a step, by its class.
SLOW: dict[str, tuple[Any, dict[str, Any], str]] = {
    "AdamW": (fv.optim.AdamW, {}, "exp_avg_sq"),
    "Adam": (fv.optim.Adam, {"amsgrad": True}, "exp_avg_sq"),
    "NAdam": (fv.optim.NAdam, {}, "exp_avg_sq"),
    "RAdam": (fv.optim.RAdam, {}, "exp_avg_sq"),
    "Adamax": (fv.optim.Adamax, {}, "exp_inf"),
    "RMSprop": (fv.optim.RMSprop, {"alpha": 0.999}, "square_avg"),
    "Adadelta": (fv.optim.Adadelta, {"rho": 0.999}, "square_avg"),
    "Grams": (fv.optim.Grams, {}, "exp_avg_sq"),
    "LAMB": (fv.optim.LAMB, {}, "exp_avg_sq"),
    "StableAdamW": (fv.optim.StableAdamW, {}, "exp_avg_sq"),
    "AdEMAMix": (fv.optim.AdEMAMix, {"betas": (0.9, 0.999, 0.999)}, "exp_avg_slow"),
}


def fallen(kind: Any, options: dict[str, Any], name: str, store_dtype: torch.dtype, rounds: bool = True) -> float:
    """The mean of a state after 300 gradients of ones and 2,000 of zeros."""
    module = nn.Linear(32, 32).to(store_dtype)
    optimizer = kind(fv.VarStore.from_module(module), **options)
    optimizer.stochastic_rounding = rounds
    for number in [1.0] * 300 + [0.0] * 2000:
        for param in module.parameters():
            param.grad = torch.full_like(param, number)
        optimizer.step()
    return float(optimizer.state[module.weight][name].double().mean())


@functools.cache
def truth_of(which: str) -> float:
    kind, options, name = SLOW[which]
    return fallen(kind, options, name, torch.float32)


# One launch rounds in both: of a bfloat16 store, which rounds more of its streams, those with a phase more or less.
@pytest.mark.parametrize(
    ("which", "how"),
    [(which, "state_dtype") for which in SLOW]
    + [(which, "bfloat16 store") for which in ("AdamW", "RMSprop", "StableAdamW")],
)
def test_an_average_decays(which: str, how: str) -> None:
    kind, options, name = SLOW[which]
    if how == "state_dtype":
        found = fallen(kind, {**options, "state_dtype": torch.bfloat16}, name, torch.float32)
    else:
        found = fallen(kind, options, name, torch.bfloat16)
    assert found == pytest.approx(truth_of(which), rel=0.1)


def test_rounded_to_nearest_it_does_not() -> None:
    """As in torch.optim: what `stochastic_rounding = False` is for."""
    kind, options, name = SLOW["AdamW"]
    assert fallen(kind, options, name, torch.bfloat16, rounds=False) == 0.25


def trained(optimizer: Any, module: nn.Module, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in module.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def states(optimizer: Any, module: nn.Module) -> list[torch.Tensor]:
    kept = [optimizer.state[param][name] for param in module.parameters() for name in ("exp_avg", "exp_avg_sq")]
    return [*kept, *module.parameters()]


@pytest.mark.parametrize("how", ["state dict", "file", "copy"])
def test_a_resumed_run_is_the_uninterrupted_one(how: str, tmp_path: Any) -> None:
    module = nn.Linear(33, 70).bfloat16()
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW(store, lr=0.01)
    trained(optimizer, module, range(3))
    again = copy.deepcopy(module)
    if how == "copy":
        again, other = copy.deepcopy((module, store, optimizer))[::2]
    else:
        store_again = fv.VarStore.from_module(again)
        other = fv.optim.AdamW(store_again, lr=0.01)
    if how == "state dict":
        other.load_state_dict(optimizer.state_dict())
    elif how == "file":
        store.save(tmp_path / "run.safetensors", optimizer)
        store_again.load(tmp_path / "run.safetensors", other)
    trained(optimizer, module, range(3, 6))
    trained(other, again, range(3, 6))
    assert all(map(torch.equal, states(optimizer, module), states(other, again)))


def test_draws_depend_on_name_and_seed_and_not_on_neighbors() -> None:
    def run(seed: int, name: str, before: int, threads: int, renamed: str | None = None) -> torch.Tensor:
        store = fv.VarStore(seed=seed)
        for i in range(before):
            store.add(f"other{i}", torch.ones(1000 + i, dtype=torch.bfloat16))
        param = store.add(name, torch.ones(9000, dtype=torch.bfloat16))
        optimizer = fv.optim.AdamW([param])
        had = torch.get_num_threads()
        torch.set_num_threads(threads)
        for step in range(3):
            if renamed is not None and step == 1:
                store.rename(name, renamed)  # a step ago the keys were made
            param.grad = torch.linspace(-1, 1 + step, 9000).bfloat16()
            optimizer.step()
        torch.set_num_threads(had)
        return optimizer.state[param]["exp_avg_sq"].clone()

    found = run(0, "weight", 0, 1)
    assert torch.equal(found, run(0, "weight", 3, 2))
    assert not torch.equal(found, run(1, "weight", 0, 1))
    assert not torch.equal(found, run(0, "height", 0, 1))
    assert not torch.equal(found, run(0, "weight", 0, 1, renamed="height"))
