"""`param_groups` is the truth: what a user edits there is what is stepped, and state stays with its parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.errors import ForeignParameterError

from .pairs import MODES, Pair

Edit = Callable[[Any, list[nn.Parameter]], None]


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 40), nn.Linear(4, 4))


def remove(opt: Any, params: list[nn.Parameter]) -> None:
    del opt.param_groups[0]["params"][1]


def empty(opt: Any, params: list[nn.Parameter]) -> None:
    opt.param_groups[0]["params"] = []


def exchange(opt: Any, params: list[nn.Parameter]) -> None:
    opt.param_groups[0]["params"] = [params[3], params[0]]


def turn(opt: Any, params: list[nn.Parameter]) -> None:
    opt.param_groups[0]["params"].reverse()


def move(opt: Any, params: list[nn.Parameter]) -> None:
    opt.add_param_group({"params": [opt.param_groups[0]["params"].pop()], "lr": 0.5})


def add_a_group(opt: Any, params: list[nn.Parameter]) -> None:
    taken = opt.param_groups[0]["params"]
    opt.param_groups.append({**opt.param_groups[0], "params": [taken.pop(0), taken.pop(0)], "lr": 0.3})


def delete_a_group(opt: Any, params: list[nn.Parameter]) -> None:
    move(opt, params)
    del opt.param_groups[0]


def assign_all(opt: Any, params: list[nn.Parameter]) -> None:
    old = opt.param_groups[0]
    opt.param_groups = [{**old, "params": params[:2], "lr": 0.01}, {**old, "params": params[2:]}]


EDITS: list[Edit] = [remove, empty, exchange, turn, move, add_a_group, delete_a_group, assign_all]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd-momentum"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edit_is_followed(edit: Edit, optimizer: str, mode: str) -> None:
    pair = Pair.of(layers(), optimizer, mode)
    pair.run(2)
    for opt, module in ((pair.opt, pair.ours), (pair.ref, pair.theirs)):
        edit(opt, list(module.parameters()))
    pair.run(3, seed=2)
    pair.assert_values_close()
    by_param = [
        {name: opt.state[param] for name, param in module.named_parameters() if param in opt.state}
        for opt, module in ((pair.opt, pair.ours), (pair.ref, pair.theirs))
    ]
    assert by_param[0].keys() == by_param[1].keys()
    for name, theirs in by_param[1].items():
        for key, value in theirs.items():
            torch.testing.assert_close(by_param[0][name][key], value, rtol=5e-6, atol=1e-6)


def test_what_was_taken_out_goes_on_where_it_was() -> None:
    pair = Pair.of(layers(), "adamw")
    pair.run(2)
    kept = [(opt, opt.param_groups[0]["params"].pop(2)) for opt in (pair.opt, pair.ref)]
    pair.run(2, seed=2)
    for opt, param in kept:
        opt.param_groups[0]["params"].insert(0, param)
    pair.run(2, seed=3)
    pair.assert_values_close()
    assert pair.opt.state[kept[0][1]]["step"] == pair.ref.state[kept[1][1]]["step"] == 4


@pytest.mark.parametrize("how", ["append", "replace"])
def test_a_parameter_of_no_store_is_refused_at_the_step(how: str) -> None:
    module = layers()
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    for param in module.parameters():
        param.grad = torch.ones_like(param)
    before = store.values.clone()
    stranger = nn.Parameter(torch.ones(3))
    if how == "append":
        optimizer.param_groups[0]["params"].append(stranger)
    else:
        optimizer.param_groups[0]["params"][0] = stranger
    with pytest.raises(ForeignParameterError, match=r"store\.(add|rebind)"):
        optimizer.step()
    assert torch.equal(store.values, before)
    optimizer.param_groups[0]["params"].pop(-1 if how == "append" else 0)
    optimizer.step()
    assert not torch.equal(store.values, before)


MAKERS: dict[str, Callable[[nn.Module], Any]] = {
    "generator": lambda module: module.parameters(),
    "filter": lambda module: filter(lambda param: param.requires_grad, module.parameters()),
    "map": lambda module: map(nn.Module.get_parameter, [module] * 4, ["0.weight", "0.bias", "1.weight", "1.bias"]),
    "tuple": lambda module: tuple(module.parameters()),
}


@pytest.mark.parametrize("made", MAKERS)
def test_iterators_in_groups(made: str) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW([{"params": MAKERS[made](module)}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]
    named = fv.optim.SGD([{"params": module.named_parameters()}], lr=0.1)
    assert len(named.param_groups[0]["params"]) == 4


def test_an_empty_group() -> None:
    module = nn.Linear(3, 3)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW([{"params": []}, {"params": module.parameters()}], store=store)
    module(torch.ones(1, 3)).sum().backward()
    before = store.values.clone()
    optimizer.step()
    assert not torch.equal(store.values, before)


def test_parameters_of_two_stores() -> None:
    modules = nn.Linear(3, 3), nn.Linear(3, 3)
    for module in modules:
        fv.VarStore.from_module(module)
    with pytest.raises(ForeignParameterError, match=r"add_module(.|\n)*merge"):
        fv.optim.AdamW([param for module in modules for param in module.parameters()])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda store: fv.optim.AdamW(store, lr=torch.tensor(-1.0)), "lr"),
        (lambda store: fv.optim.AdamW(store, lr="1e-3"), "lr"),
        (lambda store: fv.optim.AdamW(store, state_dtype=torch.int32), "state_dtype"),
        (lambda store: fv.optim.AdamW([{"params": "*", "max_norm": 1.0}], store=store), "max_norm"),
        (lambda store: fv.optim.AdamW([{"params": "*", "weight_decya": 1.0}], store=store), "weight_decya"),
        (lambda store: fv.optim.AdamW([{"params": "*"}, {"params": "*.bias"}], store=store), "bias"),
    ],
    ids=["negative tensor", "string", "integer states", "option in a group", "misspelled", "nothing left"],
)
def test_refused_where_it_is_made(make: Callable[[fv.VarStore], object], words: str) -> None:
    store = fv.VarStore.from_module(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises((ValueError, TypeError, fv.UnknownNameError), match=words):
        make(store)


def test_a_state_dict_of_another_class_is_refused() -> None:
    pair = Pair.of(layers(), "lion")
    pair.run(2)
    module = layers()
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW(store, lr=0.1)
    with pytest.raises(ValueError, match=r"exp_avg_sq|Lion|AdamW"):
        optimizer.load_state_dict(pair.opt.state_dict())
    assert optimizer.state_dict()["state"] == {}
    assert optimizer.param_groups[0]["lr"] == 0.1


CLASSES = [
    kind
    for kind in vars(fv.optim).values()
    if isinstance(kind, type) and issubclass(kind, fv.optim.Optimizer) and kind.__module__ != "flatvars.optim.base"
]
CLASSES.remove(fv.optim.RuleOptimizer)
NO_NUMBERS = {"word": "0.1", "None": None, "four": (0.1, 0.2, 0.3, 0.4), "one": (0.5,), "nan": float("nan")}
# torch's own, and Schedule-Free's and Prodigy's authors', take these below zero; Adafactor's beta2_decay is.
ANY_SIGN = {"dampening", "lambd", "alpha", "t0", "r", "weight_lr_power", "d_numerator", "beta2_decay"}


def two_layers() -> tuple[nn.Module, fv.VarStore]:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    return module, fv.VarStore.from_module(module)


def wrong_entries(kind: Any) -> list[tuple[str, Any]]:
    """Every number of a class, and what it cannot be."""
    defaults = kind(two_layers()[1]).defaults
    numbers = [name for name, value in defaults.items() if value is not None and not isinstance(value, bool)]
    found = [(name, wrong) for name in numbers for wrong in NO_NUMBERS.values()]
    found += [
        (name, -1.0) for name in numbers if name not in ANY_SIGN or (name == "alpha" and kind is not fv.optim.ASGD)
    ]
    return [pair for pair in found if pair[1] is not None or pair[0] not in kind.optional]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_number_is_looked_at_wherever_it_comes_from(kind: Any) -> None:
    module, store = two_layers()
    for name, wrong in wrong_entries(kind):
        with pytest.raises((TypeError, ValueError), match=name):
            kind(store, **{name: wrong})
        with pytest.raises((TypeError, ValueError), match=name):
            kind([{"params": list(module.parameters()), name: wrong}])
    optimizer = kind(store)
    saved = optimizer.state_dict()
    module(torch.ones(2, 3)).sum().backward()
    before = store.values.clone()
    for name, wrong in wrong_entries(kind):
        if name == "lr" and wrong == -1.0:  # a schedule may carry it there, as in torch
            continue
        first, *others = saved["param_groups"]  # Muon has one more, of what is no matrix
        changed = {**saved, "param_groups": [{**first, name: wrong}, *others]}
        with pytest.raises((TypeError, ValueError), match=rf"{name}(.|\n)*nothing was changed"):
            optimizer.load_state_dict(changed)
        assert optimizer.param_groups[0][name] == optimizer.defaults[name]
        optimizer.param_groups[0][name] = wrong
        with pytest.raises((TypeError, ValueError), match=name):
            optimizer.step()
        optimizer.param_groups[0][name] = optimizer.defaults[name]
        assert torch.equal(store.values, before)
    for _ in range(2):  # ADOPT's first step gathers alone
        module(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert not torch.equal(store.values, before)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_flag_is_looked_at(kind: Any) -> None:
    defaults = kind(two_layers()[1]).defaults
    for name in [name for name, value in defaults.items() if isinstance(value, bool) or value is None]:
        if name in ("differentiable", "adjust_lr_fn"):  # refused if true; the name of a function
            continue
        with pytest.raises(TypeError, match=name):
            kind(two_layers()[1], **{name: "yes"})


def test_a_learning_rate_below_zero_by_a_schedules_rounding() -> None:
    pair = Pair.of(layers(), "adamw")
    for opt in (pair.opt, pair.ref):
        opt.param_groups[0]["lr"] = -1e-3
    pair.run(2)
    pair.assert_values_close()
    pair.opt.load_state_dict(pair.ref.state_dict())
    assert pair.opt.param_groups[0]["lr"] == -1e-3


@pytest.mark.parametrize("how", ["made", "edited"])
def test_pairs_with_names(how: str) -> None:
    module, store = two_layers()
    if how == "made":
        optimizer = fv.optim.AdamW([{"params": module.named_parameters(), "lr": 0.1}])
    else:
        optimizer = fv.optim.AdamW(store, lr=0.1)
        optimizer.param_groups[0]["params"] = module.named_parameters()
        optimizer.follow()
    twin = torch.optim.AdamW([{"params": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).named_parameters()}])
    assert optimizer.param_groups[0]["param_names"] == twin.param_groups[0]["param_names"]
    assert all(map(lambda p, q: p is q, optimizer.param_groups[0]["params"], module.parameters()))
    module(torch.ones(2, 3)).sum().backward()
    before = store.values.clone()
    optimizer.step()
    assert not torch.equal(store.values, before)


@pytest.mark.parametrize("entry", ["0.weight", 3, None, ("a", "b")], ids=repr)
def test_what_is_no_parameter_in_a_group(entry: Any) -> None:
    module, store = two_layers()
    weight = module[0].weight
    with pytest.raises((TypeError, ValueError), match=r"can only optimize Tensors|with/without names"):
        fv.optim.AdamW([{"params": [weight, entry]}])
    optimizer = fv.optim.AdamW(store)
    module(torch.ones(2, 3)).sum().backward()
    before = store.values.clone()
    right = optimizer.param_groups[0]["params"]
    for wrong in ([*right, entry], [entry], *([entry] if isinstance(entry, str) else [])):
        optimizer.param_groups[0]["params"] = wrong
        with pytest.raises(TypeError, match=r"can only optimize Tensors(.|\n)*give Parameters"):
            optimizer.step()
    assert torch.equal(store.values, before)
    optimizer.param_groups[0]["params"] = right
    optimizer.step()
    assert not torch.equal(store.values, before)


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "RAdam"])
def test_groups_of_either_decay_in_one_optimizer(kind: str) -> None:
    """As arguments of groups, and loaded."""
    modules = layers(), layers()
    modules[1].load_state_dict(modules[0].state_dict())
    fv.VarStore.from_module(modules[0])
    made = []
    for library, module in zip((fv.optim, torch.optim), modules, strict=True):
        groups = [{"params": module[i].parameters(), "decoupled_weight_decay": i == 0} for i in range(2)]
        made.append(getattr(library, kind)(groups, lr=0.02, weight_decay=0.3))
    ours, theirs = made
    for round_ in range(3):
        for module in modules:
            for k, param in enumerate((*module[0].parameters(), *module[1].parameters())):
                param.grad = torch.full_like(param, 0.1 * (k + 1) * (round_ - 0.5))
        ours.step()
        theirs.step()
        if round_ == 1:
            ours.load_state_dict(theirs.state_dict())
    for mine, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-6, atol=1e-6)
    assert [group["decoupled_weight_decay"] for group in ours.param_groups] == [True, False]


def test_decoupled_weight_decay_is_torchs() -> None:
    """Adam with it is AdamW, as an argument, in a group, in a loaded state dict."""
    for arguments in ({"decoupled_weight_decay": True}, {}):
        module = layers()
        theirs = torch.optim.Adam(layers().parameters(), lr=0.02, weight_decay=0.1, decoupled_weight_decay=True)
        store = fv.VarStore.from_module(module)
        optimizer = fv.optim.Adam(store, lr=0.02, weight_decay=0.1, **arguments)
        if not arguments:
            optimizer.load_state_dict(theirs.state_dict())
        for group, param in zip(theirs.param_groups, [module[0].weight], strict=True):
            group["params"] = [nn.Parameter(param.detach().clone())]
        for param in (module[0].weight, theirs.param_groups[0]["params"][0]):
            param.grad = torch.ones_like(param)
        optimizer.step()
        theirs.step()
        torch.testing.assert_close(module[0].weight, theirs.param_groups[0]["params"][0], rtol=5e-6, atol=1e-6)


def test_cautious_decay_beside_a_group_of_coupled_decay_is_refused() -> None:
    one, other, store = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3)), fv.VarStore()
    store.add("one", one)
    store.add("other", other)
    groups = [{"params": [one], "decoupled_weight_decay": True, "cautious_decay": True}, {"params": [other]}]
    with pytest.raises(ValueError, match=r"cautious_decay and cautious are for optimizers whose groups all"):
        fv.optim.Adam(groups, store=store, lr=0.1, weight_decay=0.5).step()


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Adam"])
def test_a_flag_of_none_is_false_as_with_torch(name: str) -> None:
    module, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    fv.VarStore.from_module(module)
    for kind, each in ((fv.optim, module), (torch.optim, twin)):
        optimizer = getattr(kind, name)(each.parameters(), lr=0.1, weight_decay=0.5)
        optimizer.param_groups[0]["decoupled_weight_decay"] = None
        each(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    torch.testing.assert_close(module.weight, twin.weight, rtol=1e-5, atol=1e-7)


def test_a_flag_of_several_numbers_is_refused() -> None:
    module = nn.Linear(3, 2)
    optimizer = fv.optim.SGD(fv.VarStore.from_module(module), lr=0.1)
    optimizer.param_groups[0]["maximize"] = torch.ones(3)
    module(torch.ones(1, 3)).sum().backward()
    with pytest.raises(TypeError, match=r"maximize=.*give True or False"):
        optimizer.step()


def test_numbers_that_a_capture_refused_are_uploaded_later(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(1, 1, bias=False)
    optimizer = fv.optim.SGD(fv.VarStore.from_module(module), lr=1.0)
    module.weight.grad = torch.ones(1, 1)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    with monkeypatch.context() as capturing:
        capturing.setattr("flatvars.kernels.hyper.is_capturing", lambda tensor: True)
        with pytest.raises(fv.FlatvarsError, match="upload_hyperparameters"):
            optimizer.step()
    optimizer.upload_hyperparameters()
    before = module.weight.item()
    optimizer.step()
    assert before - module.weight.item() == pytest.approx(0.5)
