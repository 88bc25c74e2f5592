"""`stats=`: norms, ratios and counts of every variable, told by the step itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.errors import FlatvarsError
from tests.support.launches import count_operators


class Run:
    """A model whose gradients are set by hand, and an optimizer that tells of its steps."""

    def __init__(self, kind: Any = fv.optim.AdamW, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3))
        self.store = fv.VarStore.from_module(self.model)
        self.opt = kind(self.store, lr=0.1, **{"stats": True, **options})

    def step(self, seed: int, skip: tuple[str, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, param in self.model.named_parameters():
            grad = torch.randn(param.shape, generator=generator)
            param.grad = None if name in skip else grad
        self.opt.step()


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.1}], ids=["plain", "clip"])
@pytest.mark.parametrize("kind", [fv.optim.AdamW, fv.optim.SGD, fv.optim.Muon], ids=lambda kind: kind.__name__)
def test_numbers_are_those_of_the_step(kind: Any, options: dict[str, Any]) -> None:
    run = Run(kind, **options)
    run.step(0)
    before = {name: p.detach().clone().double() for name, p in run.model.named_parameters()}
    momenta = {}
    for name, param in run.model.named_parameters():
        state = run.opt.state.get(param) or {}
        found = [state[key] for key in ("exp_avg", "momentum_buffer") if key in state]
        momenta[name] = found[0].clone().double() if found else None
    run.step(1)
    stats = run.opt.stats()
    assert list(stats) == [name for name, _ in run.model.named_parameters()]
    for name, param in run.model.named_parameters():
        told = {column: float(number) for column, number in stats[name].items()}
        value, grad = param.detach().double(), param.grad.double()
        update = value - before[name]
        assert told["value_norm"] == pytest.approx(float(value.norm()), rel=1e-5)
        assert told["grad_norm"] == pytest.approx(float(grad.norm()), rel=1e-5)
        assert told["update_norm"] == pytest.approx(float(update.norm()), rel=1e-4)
        assert told["update_ratio"] == pytest.approx(float(update.norm() / value.norm()), rel=1e-4)
        m = momenta[name]
        cosine = 0.0 if m is None else float(torch.cosine_similarity(grad.flatten(), m.flatten(), dim=0))
        assert told["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert (told["nonfinite"], told["zeros"], told["stuck"]) == (0.0, 0.0, 0.0)


def test_every_kth_step_tells_and_a_skipped_one_does_not() -> None:
    run = Run(stats=3, skip_nonfinite=True)
    norms = []
    for seed in range(5):
        run.step(seed)
        norms.append(float(run.opt.stats()["1.bias"]["grad_norm"]))
    assert norms[0] == norms[1] == norms[2] != norms[3] == norms[4]
    run.step(5)
    for param in run.model.parameters():
        param.grad = torch.full_like(param, torch.inf)
    run.opt.step()
    assert int(run.opt.skipped) == 1
    assert float(run.opt.stats()["1.bias"]["grad_norm"]) == norms[-1]


def test_what_did_not_step_is_as_it_was_or_nan() -> None:
    run = Run()
    run.step(0, skip=("3.bias",))
    assert run.opt.stats()["3.bias"]["value_norm"].isnan()
    before = run.opt.stats()["3.weight"]["grad_norm"].clone()
    run.store.freeze("3.weight")
    run.step(1)
    late = run.store.add("late", torch.ones(3))
    stats = run.opt.stats()
    assert stats["late"]["value_norm"].isnan()
    assert stats["3.weight"]["grad_norm"] == before
    assert float(stats["3.bias"]["value_norm"]) == pytest.approx(float(run.model[3].bias.detach().norm()))
    late.grad = torch.tensor([0.0, 1.0, 2.0])
    run.step(2)
    assert run.opt.stats()["late"]["zeros"] == 1
    run.store.remove("late")
    new = run.store.add("new", torch.ones(3))
    assert "late" not in run.opt.stats()
    assert run.opt.stats()["new"]["value_norm"].isnan()
    del new


def test_a_table_for_people() -> None:
    run = Run()
    run.step(0, skip=("3.bias",))
    lines = run.store.summary(run.opt.stats()).splitlines()
    assert lines[0].split() == [
        "variable",
        *["value_norm", "grad_norm", "update_norm", "update_ratio", "cosine"],
        *COUNTS,
    ]
    assert lines[1].split()[0] == "0.weight"
    assert lines[1].split()[-3:] == ["0", "0", "0"]
    assert lines[-1].split() == ["3.bias", *["nan"] * 5, "-", "-", "-"]


COUNTS = ("nonfinite", "zeros", "stuck")


def test_it_changes_no_bit_and_runs_no_operator() -> None:
    runs = [Run(), Run(stats=False)]
    counts = []
    for run in runs:
        run.step(0)
        with count_operators() as operators:
            run.opt.step()
        counts.append(len(operators))
    assert counts[0] == counts[1]
    assert all(map(torch.equal, runs[0].model.parameters(), runs[1].model.parameters()))


def test_copies_go_on_telling() -> None:
    run = Run(stats=2)
    run.step(0)
    *_, again = copy.deepcopy((run.model, run.store, run.opt))
    assert again.stats_every == 2
    assert again.stats().value_norm.isnan().all()


@pytest.mark.parametrize("stats", [-1, 1.5, "all"])
def test_what_cannot_be_is_refused(stats: Any) -> None:
    with pytest.raises(ValueError, match="every k-th step"):
        Run(stats=stats)
    with pytest.raises(FlatvarsError, match="stats=True"):
        Run(stats=False).opt.stats()
