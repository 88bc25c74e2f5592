"""A state dict that is refused changes nothing: neither values, nor states, nor groups."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv

Dict = dict[str, Any]


def made(kind: Any) -> tuple[nn.Module, Any]:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = kind(fv.VarStore.from_module(module), lr=0.1)
    for _ in range(2):
        module(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def snapshot(module: nn.Module, optimizer: Any) -> list[Any]:
    """All there is, as what compares: tensors by their values."""
    found = optimizer.state_dict()
    states = [(k, name, value) for k, state in found["state"].items() for name, value in state.items()]
    entries = [(name, value) for group in optimizer.param_groups for name, value in group.items() if name != "params"]
    members = [[id(param) for param in group["params"]] for group in optimizer.param_groups]
    plain = [[x.tolist() if isinstance(x, Tensor) else x for x in item] for item in copy.deepcopy([*states, *entries])]
    return [*plain, *members, *(param.tolist() for param in module.parameters())]


def last(saved: Dict) -> Dict:
    """The state that is written last."""
    state: Dict = saved["state"][3]
    return state


def with_state(name: str, make: Callable[[Tensor], Any]) -> Callable[[Dict], None]:
    def change(saved: Dict) -> None:
        last(saved)[name] = make(last(saved)[name])

    return change


def with_group(**entries: Any) -> Callable[[Dict], None]:
    def change(saved: Dict) -> None:
        saved["param_groups"][0].update(entries)

    return change


def one_more_group(saved: Dict) -> None:
    saved["param_groups"].append(saved["param_groups"][0])


def fewer_parameters(saved: Dict) -> None:
    saved["param_groups"][0]["params"].pop()


def no_dict(saved: Dict) -> None:
    saved["state"][3] = 5


def without(name: str) -> Callable[[Dict], None]:
    def change(saved: Dict) -> None:
        del last(saved)[name]

    return change


CHANGES: dict[str, Callable[[Dict], None]] = {
    "step: a word": with_state("step", lambda _: "two"),
    "step: None": with_state("step", lambda _: None),
    "step: NaN": with_state("step", lambda _: torch.tensor(float("nan"))),
    "step: infinite": with_state("step", lambda _: float("inf")),
    "step: negative": with_state("step", lambda _: torch.tensor(-2.0)),
    "step: two numbers": with_state("step", lambda _: torch.ones(2)),
    "step: a number for each element": with_state("step", lambda _: torch.ones(2, 3)),
    "step: on meta": with_state("step", lambda x: x.to("meta")),
    "step: complex": with_state("step", lambda x: x.to(torch.complex64)),
    "sparse": with_state("exp_avg", lambda x: x.to_sparse()),
    "meta": with_state("exp_avg_sq", lambda x: x.to("meta")),
    "complex": with_state("exp_avg", lambda x: x.to(torch.complex64)),
    "another shape": with_state("exp_avg_sq", lambda _: torch.ones(7)),
    "a list": with_state("exp_avg", lambda x: x.tolist()),
    "a number": with_state("exp_avg", lambda _: 0.5),
    "no step": without("step"),
    "no average": without("exp_avg_sq"),
    "no dict": no_dict,
    "one more group": one_more_group,
    "fewer parameters": fewer_parameters,
    "a word for a number": with_group(lr="0.1"),
    "three betas": with_group(betas=(0.1, 0.2, 0.3)),
    "a negative eps": with_group(eps=-1.0),
    "a word for a flag": with_group(maximize="yes"),
}


@pytest.mark.parametrize("kind", [fv.optim.AdamW, fv.optim.NAdam], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_changed(change: Callable[[Dict], None], kind: Any) -> None:
    module, optimizer = made(kind)
    saved = copy.deepcopy(made(kind)[1].state_dict())
    saved["param_groups"][0]["lr"] = 99.0
    change(saved)
    before = snapshot(module, optimizer)
    with pytest.raises((TypeError, ValueError)):
        optimizer.load_state_dict(saved)
    assert snapshot(module, optimizer) == before


@pytest.mark.parametrize("step", [2, 2.0, torch.tensor(2), torch.tensor([2.0])], ids=repr)
def test_what_a_step_may_be(step: Any) -> None:
    _, optimizer = made(fv.optim.AdamW)
    saved = copy.deepcopy(optimizer.state_dict())
    last(saved)["step"] = step
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["state"][3]["step"] == 2
