"""An error leaves values, gradients, state, counts and modules as they were: no call stops midway."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import Bag

from .training import adopted, assert_same, backward, linear, states, values

TWO_DTYPES = {"narrow": (3,), "wide": (3,), "narrow_too": (2,)}


@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("first", [True, False], ids=["overwrites", "adds"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(5), r"gradient of 'bias' has shape \(5,\).*variable has shape \(2,\).*assign"),
        (torch.ones(()), r"gradient of 'bias' has shape \(\).*variable has shape \(2,\).*assign"),
        (torch.ones(2, dtype=torch.int32), r"gradient of 'bias' has dtype torch\.int32.*float32"),
        (torch.ones(2, dtype=torch.complex64), r"gradient of 'bias' has dtype torch\.complex64.*float32"),
    ],
    ids=["shape", "scalar", "integer", "complex"],
)
def test_accumulate_refuses_before_it_writes(bad: torch.Tensor, message: str, first: bool, mode: str) -> None:
    module = linear()
    store = fv.VarStore.from_module(module, grads=mode)
    store.zero_grad()
    if not first:
        store.accumulate({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    before = store.grads.clone()
    with pytest.raises(fv.GradientError, match=message):
        store.accumulate({"weight": torch.ones(2, 3), "bias": bad})
    assert torch.equal(store.grads, before)
    assert (store["weight"].grad is None) == first
    assert float(store.grad_norm()) == pytest.approx(float(before.norm()))


@pytest.mark.parametrize("clip", [None, 1.0], ids=["plain", "clipped"])
def test_a_step_refuses_a_gradient_before_any_region_moves(clip: float | None) -> None:
    module = Bag(TWO_DTYPES, [torch.float32, torch.float64])
    store = fv.VarStore.from_module(module)
    opt = fv.optim.AdamW(store, lr=0.1, max_norm=clip)
    for param in module.parameters():
        param.grad = torch.ones_like(param)
    opt.step()
    before, before_states = values(module), states(opt)
    module.wide.grad_dtype = None
    module.wide.grad = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(fv.GradientError, match=r"gradient of 'wide' has dtype torch\.complex64"):
        opt.step()
    assert_same(values(module), before)
    assert_same(states(opt), before_states)


def test_accumulate_wants_one_gradient_per_variable() -> None:
    _, store, _ = adopted()
    with pytest.raises(fv.GradientError, match=r"1 gradients were given for 2 trainable variables.*creation order"):
        store.accumulate([torch.ones(2, 3)])
    with pytest.raises(fv.UnknownNameError, match=r"\['nothing'\], which the store does not hold"):
        store.accumulate({"nothing": torch.ones(2)})


def test_a_name_in_use_changes_nothing() -> None:
    _, store, _ = adopted()
    param = nn.Parameter(torch.ones(2), requires_grad=False)
    before = store.values.clone()
    with pytest.raises(fv.NameTakenError, match=r"'weight' exists already"):
        store.add("weight", param)
    assert not param.requires_grad
    assert torch.equal(store.values, before)
    assert len(store) == 2


def test_a_module_with_one_bad_parameter_stays_as_it_was() -> None:
    module = nn.Sequential(linear(), nn.Linear(2, 2, dtype=torch.complex64))
    address = module[0].weight.data_ptr()
    with pytest.raises(fv.SpecError, match=r"'1\.weight' is torch\.complex64"):
        fv.VarStore.from_module(module)
    assert module[0].weight.data_ptr() == address


def test_a_refused_param_group_is_not_added() -> None:
    module, _, opt = adopted()
    stranger = nn.Linear(2, 2)
    with pytest.raises(fv.ForeignParameterError, match=r"shape \(2, 2\) lies in no store.*from_module"):
        opt.add_param_group({"params": list(stranger.parameters())})
    assert len(opt.param_groups) == 1
    backward(module)
    opt.step()
    assert opt.state[module.weight]["step"] == 2


def test_a_state_dict_of_another_shape_changes_nothing() -> None:
    module, _, opt = adopted()
    before = states(opt)
    bad = opt.state_dict()
    bad["state"] = {0: {**bad["state"][0], "exp_avg": torch.ones(5)}, 1: bad["state"][1]}
    bad["param_groups"][0]["lr"] = 99.0
    with pytest.raises(ValueError, match=r"'exp_avg' of variable 'weight' has shape \(5,\).*\(2, 3\)"):
        opt.load_state_dict(bad)
    assert_same(states(opt), before)
    assert opt.param_groups[0]["lr"] == 0.1


# torch gives the warning once per process.
@pytest.mark.filterwarnings("ignore:Using backward.*create_graph:UserWarning")
@pytest.mark.parametrize("call", ["accumulate", "grads", "grad_norm", "norms", "clip"])
def test_no_call_lets_autograd_into_the_store(call: str) -> None:
    """Gradients made with create_graph=True carry a graph: the stream and what is read of it must not."""
    module = linear()
    store = fv.VarStore.from_module(module)
    module(torch.ones(1, 3)).square().sum().backward(create_graph=True)
    found = {
        "accumulate": lambda: store.accumulate(),
        "grads": lambda: store.grads,
        "grad_norm": lambda: store.grad_norm(1.0),
        "norms": lambda: store.norms()["weight"][1],
        "clip": lambda: store.clip_grad_norm_(1.0),
    }[call]()
    assert found is None or not found.requires_grad
    assert not store.grads.requires_grad
