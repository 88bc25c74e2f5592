"""Every optimizer, whatever its rule keeps: a skipped step moves nothing, a resumed run is the uninterrupted one, and
neither the order of the variables nor what lies beside them shows in a bit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from tests.parity.pairs import OPTIMIZERS
from tests.support.tolerances import assert_same_bits

SHAPES = {"matrix": (40, 5), "long": (2100,), "scalar": (), "one": (1,), "none": (0,)}
EXTRA = {"before": (77,), "between": (300,)}


def module_of(names: list[str], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Variables of fixed values, in an order."""
    module = nn.Module()
    for name in names:
        shape = {**SHAPES, **EXTRA}[name]
        generator = torch.Generator().manual_seed(len(name))
        module.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))
    return module


def set_gradients(module: nn.Module, step: int, skip: tuple[str, ...] = ()) -> None:
    for name, param in module.named_parameters():
        generator = torch.Generator().manual_seed(100 * step + len(name))
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        param.grad = None if name in skip else grad


class Run:
    """A module, its store and an optimizer of the table."""

    def __init__(self, optimizer: str, names: list[str] | None = None, **options: Any) -> None:
        self.module = module_of(list(SHAPES) if names is None else names)
        self.store = fv.VarStore.from_module(self.module)
        kind, arguments = ALL[optimizer]
        self.opt = kind(self.store, **arguments, **options)

    def steps(self, first: int, last: int) -> Run:
        for step in range(first, last):
            set_gradients(self.module, step, ("scalar",) if step == 2 else ())
            self.opt.step()
            for group in self.opt.param_groups:
                group["lr"] = group["lr"] * 0.9
        return self

    def everything(self) -> dict[str, Tensor]:
        """Copies of values and states, by name."""
        found = {name: param.detach().clone() for name, param in self.module.named_parameters()}
        for name, param in self.module.named_parameters():
            state = self.opt.state.get(param) or {}
            found |= {f"{name}.{key}": value.detach().clone() for key, value in state.items()}
        return found


def check_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_same_bits(value, expected[name])


def with_ema(kind: Any, **options: Any) -> Any:
    """An optimizer that keeps an average of its values."""

    def make(store: Any, **arguments: Any) -> Any:
        return fv.EMA(kind(store, **arguments), **options).optimizer

    return make


# What torch has not got: `tests/kernels/test_rules.py` compares each rule with its formula.
BEYOND: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw-cautious-decay": (fv.optim.AdamW, {"lr": 0.02, "weight_decay": 0.5, "cautious_decay": True}),
    "lion-cautious-decay": (fv.optim.Lion, {"lr": 0.02, "weight_decay": 0.5, "cautious_decay": True}),
    "adopt": (fv.optim.ADOPT, {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "ademamix": (fv.optim.AdEMAMix, {"lr": 0.02, "alpha_warmup": 4, "beta3_warmup": 4}),
    "grams": (fv.optim.Grams, {"lr": 0.02}),
    "schedule-free-adamw": (fv.optim.ScheduleFreeAdamW, {"lr": 0.02, "warmup_steps": 3, "weight_decay": 0.1}),
    "schedule-free-sgd": (fv.optim.ScheduleFreeSGD, {"lr": 0.2, "r": 1.0}),
    "stable-adamw": (fv.optim.StableAdamW, {"lr": 0.02}),
    "lamb": (fv.optim.LAMB, {"lr": 0.02}),
    "mars": (fv.optim.MARS, {"lr": 0.02, "weight_decay": 0.1}),
    "lars": (fv.optim.LARS, {"lr": 0.5, "weight_decay": 0.1}),
    "adamw-cautious": (fv.optim.AdamW, {"lr": 0.02, "cautious": True, "cautious_decay": True}),
    "lion-cautious": (fv.optim.Lion, {"lr": 0.02, "weight_decay": 0.1, "cautious": True}),
    "adan": (fv.optim.Adan, {"lr": 0.02, "weight_decay": 0.1}),
    "prodigy": (fv.optim.Prodigy, {"lr": 1.0, "d0": 1e-2, "weight_decay": 0.1}),
    "ema-adamw": (with_ema(fv.optim.AdamW, schedule="warmup"), {"lr": 0.02}),
    "ema-lamb": (with_ema(fv.optim.LAMB, decay=0.9), {"lr": 0.02}),
    "ema-sgd": (with_ema(fv.optim.SGD, schedule="tensorflow"), {"lr": 0.02}),
}
ALL = {**{name: (ours, arguments) for name, (ours, _, arguments) in OPTIMIZERS.items()}, **BEYOND}

each_optimizer = pytest.mark.parametrize("optimizer", ALL)


@each_optimizer
@pytest.mark.parametrize("steps", [0, 2], ids=["before-the-first-step", "later"])
def test_a_skipped_step_moves_nothing(optimizer: str, steps: int) -> None:
    run = Run(optimizer, skip_nonfinite=True).steps(0, steps)
    twin = Run(optimizer, skip_nonfinite=True).steps(0, steps)
    before = run.everything()
    set_gradients(run.module, 9)
    run.module.get_parameter("long").grad[7] = torch.nan
    run.opt.step()
    assert int(run.opt.skipped) == 1
    check_equal(run.everything(), before)
    check_equal(run.steps(3, 5).everything(), twin.steps(3, 5).everything())


@each_optimizer
def test_order_and_neighbors_show_in_no_bit(optimizer: str) -> None:
    plain = Run(optimizer, max_norm=1e9).steps(0, 4).everything()
    names = list(reversed(SHAPES))
    if optimizer != "prodigy":  # the others are part of its sums
        names = ["before", *names, "between"]
    other = Run(optimizer, names, max_norm=1e9).steps(0, 4).everything()
    check_equal({name: other[name] for name in plain}, plain)


@each_optimizer
@pytest.mark.parametrize("steps", [0, 3], ids=["before-the-first-step", "later"])
def test_a_run_goes_on_from_a_file(optimizer: str, steps: int, tmp_path: Path) -> None:
    run = Run(optimizer).steps(0, steps)
    run.store.save(tmp_path / "run.safetensors", run.opt)
    resumed = Run(optimizer).steps(5, 6)
    resumed.store.load(tmp_path / "run.safetensors", resumed.opt)
    check_equal(resumed.steps(steps, 6).everything(), run.steps(steps, 6).everything())


@each_optimizer
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("steps", [0, 3], ids=["before-the-first-step", "later"])
def test_a_copy_goes_on_as_the_original(optimizer: str, way: str, steps: int) -> None:
    run = Run(optimizer).steps(0, steps)
    twin = Run(optimizer)
    if way == "state_dict":
        twin.module.load_state_dict(run.module.state_dict())
        twin.opt.load_state_dict(pickle.loads(pickle.dumps(run.opt.state_dict())))
    else:
        parts = (run.module, run.store, run.opt)
        again = copy.deepcopy(parts) if way == "deepcopy" else pickle.loads(pickle.dumps(parts))
        twin.module, twin.store, twin.opt = again
    check_equal(twin.steps(steps, 6).everything(), run.steps(steps, 6).everything())


def test_a_variable_that_joins_late_begins_at_its_own_first_step() -> None:
    run = Run("nadam", ["matrix"]).steps(0, 3)
    late = run.store.add("late", torch.ones(5))
    assert late not in run.opt.state
    run.module.register_parameter("late", late)
    run.steps(3, 4)
    first = run.opt.state[late]["mu_product"].item()
    assert first == pytest.approx(0.9 * (1 - 0.5 * 0.96**0.004))
    assert run.opt.state[run.module.matrix]["mu_product"].item() < first**3


def test_state_before_the_first_step_is_torchs() -> None:
    run = Run("adagrad-all")
    reference = torch.optim.Adagrad(run.module.parameters(), **OPTIMIZERS["adagrad-all"][2])
    ours, theirs = run.opt.state_dict()["state"], reference.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for index, state in ours.items():
        assert {name: value.tolist() for name, value in state.items()} == {
            name: value.tolist() for name, value in theirs[index].items()
        }


@pytest.mark.parametrize("way", ["entry", "item", "state_dict"])
def test_what_is_written_before_the_first_step_is_what_it_uses(way: str) -> None:
    run = Run("adagrad", ["matrix"])
    param = run.module.matrix
    value = torch.full_like(param, 4.0)
    if way == "entry":
        run.opt.state[param] = {"step": torch.tensor(0.0), "sum": value}
    elif way == "item":
        run.opt.state[param]["sum"] = value
    else:
        content = run.opt.state_dict()
        content["state"] = {0: {"step": torch.tensor(0.0), "sum": value}}
        run.opt.load_state_dict(content)
    assert run.opt.state_dict()["state"][0]["step"].tolist() == 0.0
    set_gradients(run.module, 0)
    run.opt.step()
    torch.testing.assert_close(run.opt.state[param]["sum"], value + param.grad.square())


def test_a_state_that_is_deleted_begins_anew() -> None:
    run = Run("rprop", ["matrix"]).steps(0, 3)
    param = run.module.matrix
    del run.opt.state[param]
    run.steps(3, 4)
    expected = run.opt.param_groups[0]["lr"] / 0.9
    torch.testing.assert_close(run.opt.state[param]["step_size"], torch.full_like(param, expected))


def test_scalars_of_variables_move_with_their_table() -> None:
    """More variables than a table has rows: the old scalars go on in the new one."""
    run = Run("asgd", ["matrix"]).steps(0, 2)
    twin = Run("asgd", ["matrix"]).steps(0, 2)
    for i in range(300):
        run.store.add(f"late{i}", torch.ones(2))
    run.steps(2, 4)
    twin.steps(2, 4)
    check_equal(run.everything(), twin.everything())
