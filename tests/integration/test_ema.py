"""The average of the values that a step keeps: torch's definitions, exchanged bit for bit, resumed, refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import flatvars as fv
from flatvars.errors import FlatvarsError, MismatchError
from tests.support.tolerances import assert_same_bits


class Run:
    """A small model with batch norm, its store, an optimizer and an average."""

    def __init__(self, kind: Callable[..., Any] = fv.optim.AdamW, ema: bool = True, **options: Any) -> None:
        torch.manual_seed(0)
        dtype = options.pop("dtype", torch.float32)
        about = {name: options.pop(name) for name in ("decay", "schedule", "gamma") if name in options}
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).to(dtype)
        self.store = fv.VarStore.from_module(self.model)
        self.opt = kind(self.store, lr=0.05, **options)
        if ema:
            self.ema = fv.EMA(self.opt, **{"decay": 0.9, **about})

    def step(self, seed: int, **scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        data = torch.randn(5, 6, generator=generator).to(self.model[0].weight.dtype)
        self.model(data).square().sum().mul(scale.get("scale", 1.0)).backward()
        self.opt.step()
        self.opt.zero_grad()

    def values(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


KINDS = [fv.optim.SGD, fv.optim.AdamW, fv.optim.LAMB, fv.optim.Muon]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("options", "averaging"),
    [({"decay": 0.8}, get_ema_multi_avg_fn(0.8)), ({"schedule": "power", "gamma": 0.0}, None)],
    ids=["constant", "mean"],
)
def test_averages_are_those_of_torchs_averaged_model(kind: Any, options: dict[str, Any], averaging: Any) -> None:
    run = Run(kind, **options)
    # Over a copy of the values: AveragedModel reads parameters, and makes its own.
    reference = AveragedModel(copy.deepcopy(Run(ema=False).model), multi_avg_fn=averaging)
    for seed in range(6):
        run.step(seed)
        reference.update_parameters(run.model)
    with run.ema.swapped():
        for (name, value), expected in zip(run.values().items(), reference.module.parameters(), strict=True):
            torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-7, msg=name)
    averages = run.ema.state_dict()
    assert averages.keys() == run.model.state_dict().keys()
    assert torch.equal(averages["1.running_mean"], run.model[1].running_mean)
    for name, param in run.model.named_parameters():
        assert_same_bits(run.ema[param], averages[name])


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_what_is_swapped_comes_back_bit_for_bit(dtype: torch.dtype, state_dtype: Any) -> None:
    run = Run(dtype=dtype, state_dtype=state_dtype)
    for seed in range(3):
        run.step(seed)
    before, average = run.values(), {n: run.ema[p].clone() for n, p in run.model.named_parameters()}
    size = run.store.registry.streams.nbytes
    inside: dict[str, torch.Tensor] = {}

    def fail() -> None:
        with run.ema.swapped():
            inside.update(run.values())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    for name, value in inside.items():
        assert_same_bits(value, average[name].to(dtype))
    for name, param in run.model.named_parameters():
        assert_same_bits(param.detach(), before[name])
        assert_same_bits(run.ema[param], average[name])
    assert run.store.registry.streams.nbytes == size


def test_frozen_masked_and_late_variables() -> None:
    run = Run(decay=0.5)
    mask = torch.ones(8, 1, dtype=torch.bool)
    mask[3] = False
    run.store.set_trainable_mask("0.weight", mask)
    run.store.freeze("2.*")
    run.step(0)
    run.step(1)
    late = run.store.add("late", torch.ones(4))
    values = {**run.values(), "late": late.detach().clone()}
    with run.ema.swapped():
        inside = {**run.values(), "late": late.detach().clone()}
    for name in ("2.weight", "2.bias", "late"):
        assert_same_bits(inside[name], values[name])
    assert_same_bits(inside["0.weight"][3], values["0.weight"][3])
    assert not torch.equal(inside["0.weight"][:3], values["0.weight"][:3])
    # What begins to train averages from its own first step on, and elements that are let go from where they are.
    run.store.unfreeze("2.*")
    run.store.set_trainable_mask("0.weight", None)
    held = run.model[0].weight.detach()[3].clone()
    late.grad = torch.full_like(late, 2.0)
    run.step(2)
    assert_same_bits(run.ema[late], late.detach())
    assert_same_bits(run.ema[run.model[2].weight], run.model[2].weight.detach())
    new = run.model[0].weight.detach()[3]
    torch.testing.assert_close(run.ema[run.model[0].weight][3], (held + new) / 2)


def test_initial_values_of_masked_elements_are_there_when_they_are_let_go() -> None:
    """They were never stored: an element that trained later began with a sum, or z, of 0."""
    for kind, name, expected in ((fv.optim.Adagrad, "sum", 0.5), (fv.optim.ScheduleFreeSGD, "z", 1.0)):
        store = fv.VarStore()
        weight = store.add("weight", torch.ones(4))
        options = {"initial_accumulator_value": 0.5} if name == "sum" else {}
        optimizer = kind(store, lr=0.1, **options)
        store.set_trainable_mask("weight", torch.tensor([True, False, True, True]))
        weight.grad = torch.ones(4)
        optimizer.step()
        assert optimizer.state[weight][name][1].item() == expected


def test_steps_files_and_copies_are_refused_inside(tmp_path: Path) -> None:
    run = Run()
    run.step(0)
    state = run.opt.state_dict()
    refused: list[Callable[[], Any]] = [
        lambda: run.step(1),
        run.opt.state_dict,
        lambda: run.opt.load_state_dict(state),
        lambda: run.store.save(tmp_path / "all.safetensors", run.opt),
        lambda: copy.deepcopy((run.store, run.opt)),
        run.ema.reset,
        lambda: run.ema.swapped().__enter__(),
    ]
    with run.ema.swapped():
        for call in refused:
            with pytest.raises(FlatvarsError, match="leave"):
                call()
        averages = run.values()
        run.store.save(tmp_path / "average.safetensors")
    other = Run(ema=False)
    other.store.load(tmp_path / "average.safetensors")
    for name, value in other.values().items():
        assert_same_bits(value, averages[name])


def test_an_average_that_was_not_saved_begins_with_the_loaded_values(tmp_path: Path) -> None:
    plain = Run(ema=False)
    for seed in range(3):
        plain.step(seed)
    plain.store.save(tmp_path / "plain.safetensors", plain.opt)
    run, other = Run(), Run()
    for one in (run, other):
        one.step(9)
    run.store.load(tmp_path / "plain.safetensors", run.opt)
    other.model.load_state_dict(plain.model.state_dict())
    other.opt.load_state_dict(plain.opt.state_dict())
    for one in (run, other):
        for param in one.model.parameters():
            assert_same_bits(one.ema[param], param.detach())
        one.step(4)
        assert_same_bits(one.ema[one.model[2].bias], one.model[2].bias.detach())


def test_a_saved_average_needs_one_to_take_it(tmp_path: Path) -> None:
    run = Run()
    run.step(0)
    run.store.save(tmp_path / "run.safetensors", run.opt)
    plain = Run(ema=False)
    before = plain.values()
    with pytest.raises((MismatchError, fv.CheckpointError), match=r"fv\.EMA\(optimizer\)"):
        plain.store.load(tmp_path / "run.safetensors", plain.opt)
    for name, value in plain.values().items():
        assert_same_bits(value, before[name])
    torch.optim.AdamW(plain.model.parameters()).load_state_dict(run.opt.state_dict())


def test_numbers_change_for_all_groups_and_reach_new_ones() -> None:
    run = Run(decay=0.5)
    run.ema.decay = 0.0
    run.opt.add_param_group({"params": run.store.root().zeros("late", (3,))})
    assert [group["ema_decay"] for group in run.opt.param_groups] == [0.0, 0.0]
    run.step(0)
    run.step(1)
    assert_same_bits(run.ema[run.model[0].bias], run.model[0].bias.detach())
    assert repr(run.ema) == "EMA(AdamW, 'constant', decay=0)"
    with pytest.raises(ValueError, match="between 0 and 1"):
        run.ema.decay = 1.5
    run.opt.param_groups[0]["ema_decay"] = float("nan")
    with pytest.raises(ValueError, match="decay"):
        run.step(2)


def test_reset_begins_anew() -> None:
    run = Run(decay=0.99)
    for seed in range(3):
        run.step(seed)
    run.ema.reset()
    for param in run.model.parameters():
        assert_same_bits(run.ema[param], param.detach())
    run.step(3)
    assert_same_bits(run.ema[run.model[0].bias], run.model[0].bias.detach())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decay": 1.1}, "between 0 and 1"),
        ({"schedule": "cosine"}, "give one of 'constant'"),
        ({"schedule": "warmup", "gamma": 0.0}, "above 0"),
        ({"decay": "much"}, "no number"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any], match: str) -> None:
    run = Run(ema=False)
    with pytest.raises((ValueError, TypeError), match=match):
        fv.EMA(run.opt, **options)
    assert run.opt.average is None
    fv.EMA(run.opt)
    with pytest.raises(FlatvarsError, match="already"):
        fv.EMA(run.opt)


def test_without_it_the_same_bits() -> None:
    runs = Run(), Run(ema=False)
    for seed in range(3):
        for run in runs:
            run.step(seed)
    for name, value in runs[0].values().items():
        assert_same_bits(value, runs[1].values()[name])


LEAVING: dict[str, Callable[[fv.VarStore], object]] = {
    "compact": lambda store: store.compact(),
    "remove": lambda store: store.remove("0.weight"),
    "release": lambda store: store.release(),
    "merge": lambda store: fv.VarStore.merge([store]),
}


@pytest.mark.parametrize("how", LEAVING)
def test_no_variable_leaves_while_its_value_waits_in_the_room_of_its_average(how: str) -> None:
    """`compact` dropped the values of frozen variables, and left their averages in the place of them."""
    run = Run()
    for seed in range(2):
        run.step(seed)
    run.store.freeze("0.weight")
    before = run.values()
    with run.ema.swapped():
        averages = run.values()
        with pytest.raises(FlatvarsError, match=r"leave `with ema.swapped\(\):` first"):
            LEAVING[how](run.store)
        assert all(map(torch.equal, run.values().values(), averages.values()))
    assert all(map(torch.equal, run.values().values(), before.values()))
    assert not torch.equal(averages["0.weight"], before["0.weight"])
    LEAVING[how](run.store)
