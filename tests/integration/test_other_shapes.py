"""A Parameter of another shape in the place of one: refused by steps, taken in by `rebind`, with the state it got."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv

from .training import values

MODES = pytest.mark.parametrize("mode", ["gather", "views"])


class Points(nn.Module):
    """As Gaussian splatting has: tensors of as many rows as there are points."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.linspace(-1.0, 1.0, rows * 3).view(rows, 3))
        self.color = nn.Parameter(torch.linspace(0.0, 1.0, rows).view(rows, 1))
        self.bias = nn.Parameter(torch.ones(3))

    def forward(self) -> torch.Tensor:
        return (self.where * self.color + self.bias).square().mean()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        module().backward()
        optimizer.step()
        optimizer.zero_grad()


def densify(module: Points, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
    """The recipe of such trainers: new Parameters, in the groups and in the state."""
    for group in optimizer.param_groups:
        name = group["name"]
        if name == "bias":
            continue
        old = group["params"][0]
        new = nn.Parameter(old.detach()[rows].clone())
        state = optimizer.state.get(old)
        if state is not None:
            state = dict(state)
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key][rows].clone()
            del optimizer.state[old]
            group["params"] = [new]
            optimizer.state[new] = state
        else:
            group["params"] = [new]
        setattr(module, name, new)


def groups(module: Points) -> list[dict[str, object]]:
    return [{"params": [param], "name": name} for name, param in module.named_parameters()]


@MODES
def test_points_are_split_and_pruned_as_with_torch(mode: str) -> None:
    module, twin = Points(4), Points(4)
    store = fv.VarStore.from_module(module, grads=mode)
    ours, theirs = fv.optim.Adam(groups(module), lr=0.1), torch.optim.Adam(groups(twin), lr=0.1)
    for rows in ([0, 0, 1, 2, 3, 3], [0, 2, 5], list(range(3)) * 30):
        for each, optimizer in ((module, ours), (twin, theirs)):
            train(each, optimizer, 3)
            densify(each, optimizer, rows)
        assert set(store.rebind()) >= {"where", "color"}
        assert store["where"].shape == (len(rows), 3)
        for each, optimizer in ((module, ours), (twin, theirs)):
            train(each, optimizer, 3)
        for name, param in module.named_parameters():
            torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-5, atol=1e-6)
        store.check()
    counts = [state["step"].item() for state in ours.state_dict()["state"].values()]
    assert counts == [18.0, 18.0, 18.0]


@MODES
def test_the_step_says_what_to_call_and_steps_nothing(mode: str) -> None:
    module = Points(4)
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.Adam(groups(module), lr=0.1)
    train(module, optimizer, 1)
    densify(module, optimizer, [0, 1, 2, 3, 3])
    module().backward()
    before = values(module)
    with pytest.raises(fv.ForeignParameterError, match=r"shape \(5, 3\) lies in no store.*store\.rebind\(\)"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in values(module).items())
    store.rebind()
    optimizer.step()
    assert not torch.equal(module.where, before["where"])


@MODES
def test_its_gradient_is_stepped_after_rebind(mode: str) -> None:
    module, twin = Points(4), Points(4)
    store = fv.VarStore.from_module(module, grads=mode)
    ours, theirs = fv.optim.Adam(groups(module), lr=0.1), torch.optim.Adam(groups(twin), lr=0.1)
    for each, optimizer in ((module, ours), (twin, theirs)):
        train(each, optimizer, 2)
        densify(each, optimizer, [0, 0, 1])
        each().backward()
    store.rebind()
    for optimizer in (ours, theirs):
        optimizer.step()
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-5, atol=1e-6)


@MODES
def test_without_a_state_of_its_own_it_begins_anew(mode: str) -> None:
    module = Points(4)
    store = fv.VarStore.from_module(module, grads=mode)
    optimizer = fv.optim.Adam(store, lr=0.1)
    store.set_trainable_mask("where", torch.tensor([[True], [False], [True], [True]]))
    train(module, optimizer, 2)
    module.where = nn.Parameter(torch.ones(1, 3))
    assert store.rebind() == ["where"]
    assert store.trainable_mask("where") is None
    assert module.where not in optimizer.state
    train(module, optimizer, 1)
    assert optimizer.state[module.where]["step"] == 1
    assert optimizer.state[module.bias]["step"] == 3
    assert optimizer.param_groups[0]["params"][0] is module.where


def test_data_of_another_shape() -> None:
    module = Points(4)
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.Adam(store, lr=0.1)
    train(module, optimizer, 1)
    module.where.data, module.color.data = torch.ones(2, 3), torch.ones(2, 1)
    with pytest.raises(fv.AliasError, match=r"'where'.*another shape.*store\.rebind\(\)"):
        optimizer.step()
    assert store.rebind() == ["where", "color"]
    train(module, optimizer, 1)
    assert optimizer.state[module.where]["step"] == 1
    store.check()


@MODES
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda n: nn.BatchNorm1d(n).double()], ids=["alike", "another dtype"])
def test_a_batch_norm_that_was_swapped_is_taken_in_under_its_name(kind: Callable[[int], nn.Module], mode: str) -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    store = fv.VarStore.from_module(module, buffers=True, grads=mode)
    optimizer = fv.optim.SGD(store, lr=0.1)
    module[0] = kind(3)
    with pytest.raises(fv.AliasError, match=r"'0\.weight'.*rebind"):
        store.check()
    assert {"0.weight", "0.bias", "0.running_mean"} <= set(store.rebind()) | {"0.running_mean"}
    dtype = module[0].weight.dtype
    before = module[0].weight.detach().clone()
    module(torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0]], dtype=dtype)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module[0].weight, before)
    assert store["0.running_mean"].param is module[0].running_mean
    assert torch.equal(store["0.running_mean"].value, module[0].running_mean)
    store.check()


@pytest.mark.parametrize("carved", [True, False])
@pytest.mark.parametrize("part", [lambda q: q.data[:2], lambda q: q.data.view(-1)[3:7], lambda q: q.data.t()])
def test_a_parameter_that_is_a_view_of_a_variable_is_refused(
    part: Callable[[torch.Tensor], torch.Tensor], carved: bool
) -> None:
    store = fv.VarStore()
    q = nn.Parameter(torch.ones(4, 3))
    store.add("q", q)
    if carved:
        assert len(store.values)
    with pytest.raises(fv.SpecError, match=r"'r' shares memory with variable 'q'.*come apart"):
        store.add("r", nn.Parameter(part(q)))
    assert list(store) == ["q"]
    store.add("r", nn.Parameter(part(q).clone()))
    store.check()


def test_parts_of_one_tensor_that_do_not_overlap_are_welcome() -> None:
    whole = torch.ones(6)
    store = fv.VarStore()
    store.add("a", nn.Parameter(whole[:3]))
    store.add("b", nn.Parameter(whole[3:]))
    store["a"].value.zero_()
    assert torch.equal(store["b"].value, torch.ones(3))
