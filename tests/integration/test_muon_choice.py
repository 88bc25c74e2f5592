"""Who gets what: Muon's default choice, splits, orientations, conventions, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.optim.matrix_shapes import shape_of
from flatvars.optim.newton_schulz import newton_schulz_of, orthogonalize_, scratch_numel


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tok = nn.Embedding(20, 12)
        self.block = nn.ModuleDict(
            {"qkv": nn.Linear(12, 36), "gate": nn.Linear(12, 12), "mlp": nn.Linear(12, 12), "norm": nn.LayerNorm(12)}
        )
        self.conv = nn.Conv2d(3, 4, 3)
        self.out = nn.Linear(12, 20)
        if tied:
            self.out.weight = self.tok.weight


def names_of(optimizer: fv.optim.Muon, number: int) -> list[str]:
    return [v.name for v in optimizer.membership.groups[number]]


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_matrices_are_chosen(tied: bool) -> None:
    model = Model(tied)
    optimizer = fv.optim.Muon(fv.VarStore.from_module(model))
    assert names_of(optimizer, 0) == ["block.qkv.weight", "block.mlp.weight"]
    text = optimizer.describe()
    assert "tok.weight  (20, 12), embedding" in text
    assert "block.gate.weight  (12, 12), named 'gate'" in text
    assert "block.qkv.weight  (36, 12), lr x 1.732" in text
    assert ("out.weight  (20, 12), the last Linear" in text) is not tied
    assert "group 1: AdamW, lr 0.001" in text


def test_a_selector_chooses_and_the_rest_is_adamws() -> None:
    rest = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.0}
    with pytest.raises(ValueError, match=r"2D parameters.*norm"):
        fv.optim.Muon(fv.VarStore.from_module(Model()), muon="block.*.weight")
    optimizer = fv.optim.Muon(fv.VarStore.from_module(Model()), lr=0.05, muon="block.[qm]*.weight", rest=rest)
    assert names_of(optimizer, 0) == ["block.qkv.weight", "block.mlp.weight"]
    assert {key: optimizer.param_groups[1][key] for key in rest} == rest
    assert "momentum" not in optimizer.param_groups[1]
    assert "betas" not in optimizer.param_groups[0]


def test_one_learning_rate_serves_both_where_the_sizes_match() -> None:
    optimizer = fv.optim.Muon(fv.VarStore.from_module(Model()), lr=2e-3, adjust_lr_fn="match_rms_adamw")
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3, 2e-3]
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 4)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    assert scheduler.get_last_lr() == [1e-3, 1e-3]


def test_late_variables_go_where_they_belong() -> None:
    store = fv.VarStore.from_module(Model())
    optimizer = fv.optim.Muon(store)
    store.add("more.weight", nn.Parameter(torch.zeros(12, 12)))
    store.add("more.bias", nn.Parameter(torch.zeros(12)))
    optimizer.follow()
    assert names_of(optimizer, 0)[-1] == "more.weight"
    assert names_of(optimizer, 1)[-1] == "more.bias"


def one_step(weight: torch.Tensor, grad: torch.Tensor, **options: Any) -> torch.Tensor:
    """What Muon with momentum 0 and no decay takes from a weight, divided by the learning rate."""
    param = nn.Parameter(weight.clone())
    store = fv.VarStore()
    store.add("w", param)
    param.grad = grad.clone()
    fv.optim.Muon([param], lr=0.5, momentum=0.0, weight_decay=0.0, **options).step()
    return (weight - param.detach()) / 0.5


def orthogonal(grad: torch.Tensor) -> torch.Tensor:
    matrix = grad.bfloat16()[None].contiguous()
    scratch = torch.empty(scratch_numel(1, grad.shape), dtype=torch.bfloat16)
    orthogonalize_([matrix], newton_schulz_of("keller", 5, 1e-7, False), scratch)
    return matrix[0].float()


@pytest.mark.parametrize("in_out", [False, True])
@pytest.mark.parametrize("sizes", [3, (6, 12, 18)], ids=str)
def test_splits_are_matrices_of_their_own(sizes: Any, in_out: bool) -> None:
    """Rows of a Linear, columns of a Conv1D; each with the factor of its own shape."""
    grad = torch.randn(36, 10, generator=torch.Generator().manual_seed(4))
    lengths = [12, 12, 12] if sizes == 3 else list(sizes)
    wanted = torch.cat([orthogonal(part) * max(1.0, len(part) / 10) ** 0.5 for part in grad.split(lengths)])
    options: dict[str, Any] = {"split": {"w": sizes}}
    if in_out:
        grad, wanted, options["in_out"] = grad.mT.contiguous(), wanted.mT, "w"
    found = one_step(torch.zeros(grad.shape), grad, **options)
    torch.testing.assert_close(found, wanted, rtol=3e-2, atol=1e-2)


def test_a_matrix_stored_in_out_has_the_scale_of_its_transpose() -> None:
    grad = torch.randn(10, 40, generator=torch.Generator().manual_seed(4))
    plain, turned = one_step(torch.zeros(10, 40), grad), one_step(torch.zeros(10, 40), grad, in_out=["w"])
    torch.testing.assert_close(turned, plain * 2.0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_matrices_if_asked(memory_format: torch.memory_format) -> None:
    grad = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(4))
    weight = torch.zeros(6, 4, 3, 3).contiguous(memory_format=memory_format)
    found = one_step(weight, grad.contiguous(memory_format=memory_format), convolutions=True)
    torch.testing.assert_close(found.flatten(1), orthogonal(grad.flatten(1)), rtol=3e-2, atol=1e-2)
    with pytest.raises(ValueError, match="convolutions=True"):
        one_step(weight, grad)


@pytest.mark.parametrize(
    ("convention", "scale", "lr"),
    [("torch", 2.0, 1e-3), ("keller", 2.0, 0.02), ("moonshot", 0.2 * 40**0.5, 1e-3), ("dion", 2.0, 0.01)],
)
def test_conventions_by_name(convention: str, scale: float, lr: float) -> None:
    param, store = nn.Parameter(torch.ones(40, 10)), fv.VarStore()
    store.add("w", param)
    optimizer = fv.optim.Muon([param], **fv.optim.muon_settings(convention, momentum=0.9))
    (variable,) = optimizer.members()
    assert optimizer.param_groups[0]["lr"] == lr
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert shape_of(variable, optimizer.param_groups[0])[1] == pytest.approx(scale)
    for factor in (1.0, 2.0):
        param.grad = torch.full((40, 10), factor)
        optimizer.step()
    summed = convention in ("moonshot", "dion")
    buffer = 0.9 + 2.0 if summed else 0.9 * 0.1 + 0.2
    torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], torch.full((40, 10), buffer))
    with pytest.raises(ValueError, match="no convention"):
        fv.optim.muon_settings("adam")


def test_cautious_decay_lets_growing_elements_grow() -> None:
    grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(4))
    weight = torch.ones(8, 8)
    params = [nn.Parameter(weight.clone()) for _ in range(2)]
    for param, cautious in zip(params, (False, True), strict=True):
        store = fv.VarStore()
        store.add("w", param)
        param.grad = grad.clone()
        fv.optim.Muon([param], lr=0.1, weight_decay=0.5, cautious_decay=cautious).step()
    plain, careful = (param.detach() for param in params)
    shrinks = careful == plain
    assert shrinks.any()
    assert not shrinks.all()
    torch.testing.assert_close(careful[~shrinks], plain[~shrinks] + 0.05)
    assert (careful[~shrinks] > 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": -1.0}, "lr"),
        ({"momentum": -0.1}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"adjust_lr_fn": "wrong"}, "not supported"),
        ({"ns_steps": 100}, "less than 100"),
        ({"ns_coefficients": (1.0, 2.0)}, "exactly 3"),
        ({"split": {"w": 5}}, "5 equal parts"),
        ({"split": {"w": (3, 4)}}, "add up"),
        ({"rest": {"lr": 0.1}}, "whole store"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], words: str) -> None:
    param, store = nn.Parameter(torch.ones(8, 4)), fv.VarStore()
    store.add("w", param)
    with pytest.raises(ValueError, match=words):
        fv.optim.Muon([param], **arguments)


def test_a_group_of_no_rule_and_a_rest_of_no_number_are_refused() -> None:
    store = fv.VarStore.from_module(Model())
    with pytest.raises(ValueError, match='may be "Muon" or "AdamW"'):
        fv.optim.Muon([{"params": "block.mlp.weight", "rule": "SGD"}], store=store)
    with pytest.raises(ValueError, match="rest has no 'momentum'"):
        fv.optim.Muon(store, rest={"momentum": 0.9})


def test_groups_may_name_their_rule() -> None:
    model = Model()
    store = fv.VarStore.from_module(model)
    groups = [{"params": "block.mlp.weight"}, {"params": "*", "rule": "AdamW", "lr": 1e-2}]
    optimizer = fv.optim.Muon(groups, store=store, lr=0.1)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert set(optimizer.state[model.block["mlp"].weight]) == {"momentum_buffer"}
    assert set(optimizer.state[model.out.bias]) == {"step", "exp_avg", "exp_avg_sq"}
