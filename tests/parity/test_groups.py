"""Several param groups with their own numbers, by parameters or by name patterns: one step, as torch.optim's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flatvars as fv
from tests.support.models import MIXTURE, Bag, Chain

from .pairs import FLAVOR, MODES, Pair

NAMES = {"first": ["scalar", "primes", "over_limit"], "second": ["empty", "row", "matrix"], "third": ["one", "thin"]}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "sgd": [{"lr": 0.2}, {"lr": 0.1, "momentum": 0.5, "dampening": 0.2}, {"lr": 0.05, "weight_decay": 0.3}],
    "adam": [{"lr": 0.02}, {"betas": (0.5, 0.9), "eps": 1e-6}, {"amsgrad": True, "weight_decay": 0.1}],
    "adamw": [{"lr": 0.02, "weight_decay": 0.0}, {"betas": (0.5, 0.9)}, {"maximize": True, "weight_decay": 0.3}],
    "rmsprop": [{"lr": 0.02}, {"momentum": 0.5, "alpha": 0.5}, {"centered": True, "alpha": 0.5, "weight_decay": 0.1}],
}
CLASSES = {"sgd": fv.optim.SGD, "adam": fv.optim.Adam, "adamw": fv.optim.AdamW, "rmsprop": fv.optim.RMSprop}
TRUTH = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}


def groups(module: torch.nn.Module, optimizer: str) -> list[dict[str, Any]]:
    return [
        {"params": [module.get_parameter(name) for name in names], **changes}
        for names, changes in zip(NAMES.values(), CHANGES[optimizer], strict=True)
    ]


@pytest.mark.parametrize("by", ["parameters", "patterns"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", CLASSES)
def test_groups_follow_torch(optimizer: str, mode: str, by: str) -> None:
    """The variables of a group lie apart in memory, and one has no gradient now and then."""
    pair = Pair.of(Bag(MIXTURE), mode=mode)
    ours = groups(pair.ours, optimizer)
    if by == "patterns":
        ours = [{**group, "params": names} for group, names in zip(ours, NAMES.values(), strict=True)]
    pair.opt = CLASSES[optimizer](ours, store=pair.store)
    pair.ref = TRUTH[optimizer](groups(pair.theirs, optimizer), **FLAVOR[TRUTH[optimizer]])
    pair.run(10, skip=lambda step: ["primes", "row", "empty", "matrix"][step % 4 : step % 4 + 1])
    pair.assert_values_close()


def test_a_pattern_takes_what_earlier_groups_left() -> None:
    pair = Pair.of(Bag(MIXTURE))
    opt = fv.optim.AdamW([{"params": "*empty*"}, {"params": ["row", "o*"]}, {"params": "*"}], store=pair.store)
    taken = [{id(param) for param in group["params"]} for group in opt.param_groups]
    expected = [{"empty", "empty_matrix"}, {"row", "one", "over_limit"}]
    expected.append(set(MIXTURE) - set.union(*expected))
    assert taken == [{id(pair.ours.get_parameter(name)) for name in names} for names in expected]


def test_a_pattern_without_a_match_is_refused() -> None:
    pair = Pair.of(Bag(MIXTURE))
    with pytest.raises(fv.UnknownNameError, match=r"pattern 'layer\.\*' matches none of the 10 names.*'scalar'"):
        fv.optim.SGD([{"params": "layer.*"}], store=pair.store)


@pytest.mark.parametrize("how", ["parameters", "named_parameters", "filter", "store", "list"])
def test_params_may_be_given_as_to_torch(how: str) -> None:
    pair = Pair.of(Bag(MIXTURE))
    params = {
        "parameters": pair.ours.parameters,
        "named_parameters": pair.ours.named_parameters,
        "filter": lambda: filter(lambda param: param.requires_grad, pair.ours.parameters()),
        "store": lambda: pair.store,
        "list": lambda: list(pair.ours.parameters()),
    }[how]()
    pair.opt = fv.optim.AdamW(params, lr=0.1)
    pair.ref = torch.optim.AdamW(pair.theirs.parameters(), lr=0.1, fused=True)
    pair.run(2)
    pair.assert_values_close()
    assert ("param_names" in pair.opt.param_groups[0]) == (how == "named_parameters")


@pytest.mark.row("P-O-04")
@pytest.mark.parametrize("mode", MODES)
def test_add_param_group_in_the_middle_of_a_run(mode: str) -> None:
    pair = Pair.of(Bag(MIXTURE), mode=mode)
    first, second, third = groups(pair.ours, "sgd")
    pair.opt = fv.optim.SGD([first], lr=0.1)
    pair.ref = torch.optim.SGD(groups(pair.theirs, "sgd")[:1], lr=0.1, foreach=False)
    pair.run(3)
    for group, twin in zip((second, third), groups(pair.theirs, "sgd")[1:], strict=True):
        pair.opt.add_param_group(group)
        pair.ref.add_param_group(twin)
        pair.run(3, seed=2)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.row("P-O-04")
def test_add_param_group_refuses_what_torch_refuses() -> None:
    pair = Pair.of(Bag(MIXTURE), "adamw")
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        pair.opt.add_param_group({"params": [pair.ours.row]})
    with pytest.raises(TypeError, match="ordered collections"):
        pair.opt.add_param_group({"params": {pair.ours.row}})
    assert len(pair.opt.param_groups) == 1


@pytest.mark.parametrize(("name", "value"), [("momentum", 0.9), ("lr", 0.3), ("weight_decay", 0.2), ("nesterov", True)])
def test_numbers_may_change_between_steps(name: str, value: float) -> None:
    pair = Pair.of(Bag(MIXTURE))
    start = {"lr": 0.1, "momentum": 0.5 if name == "nesterov" else 0.0}
    pair.opt = fv.optim.SGD(pair.store, **start)
    pair.ref = torch.optim.SGD(pair.theirs.parameters(), **start, foreach=False)
    pair.run(2)
    for optimizer in (pair.opt, pair.ref):
        optimizer.param_groups[0][name] = value
    pair.run(3, seed=2)
    pair.assert_values_close()


def test_amsgrad_may_be_switched_on_between_steps() -> None:
    pair = Pair.of(Bag(MIXTURE), "adamw")
    pair.run(2)
    pair.opt.param_groups[0]["amsgrad"] = True
    pair.zero_grad()
    pair.backward(torch.Generator().manual_seed(2))
    pair.opt.step()
    assert pair.opt.state[pair.ours.row]["max_exp_avg_sq"].sum() > 0


@pytest.mark.parametrize("numel", [3, 70_000])
def test_an_empty_variable_hides_no_neighbor(numel: int) -> None:
    """It has the offset of the next one: whatever finds runs by their offset finds two."""
    pair = Pair.of(Bag({"empty": (0,), "next": (numel,)}))
    pair.opt, pair.ref = (
        cls([{"params": [module.empty], "lr": 0.5}, {"params": [module.next]}], lr=1.0)
        for cls, module in ((fv.optim.SGD, pair.ours), (torch.optim.SGD, pair.theirs))
    )
    pair.run(2)
    pair.assert_values_close()


@pytest.mark.row("P-O-02", "P-O-04")
def test_parameter_names_are_kept() -> None:
    """As torch's: given as pairs, saved, and loaded over those there are."""
    module, plain = Chain(), Chain()
    store = fv.VarStore.from_module(module)
    ours = fv.optim.AdamW(list(module.named_parameters()), lr=0.1, store=store)
    theirs = torch.optim.AdamW(list(plain.named_parameters()), lr=0.1)
    saved = ours.state_dict()["param_groups"][0]["param_names"]
    assert saved == theirs.state_dict()["param_groups"][0]["param_names"] == list(store)
    state = theirs.state_dict()
    state["param_groups"][0]["param_names"] = [f"other.{name}" for name in store]
    for opt in (ours, theirs):
        opt.load_state_dict(state)
        assert opt.param_groups[0]["param_names"][0] == "other.layers.0.weight"
