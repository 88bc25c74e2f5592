"""One line is enough: an optimizer over parameters that no store holds makes one, and is otherwise torch's."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

from .test_other_shapes import Points, densify, groups
from .training import backward, linear


class Bent(nn.Linear):
    """A bias whose gradient the normalization behind it does not take away."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).tanh()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Bent(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def run(module: nn.Module, opt: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        module(torch.randn(5, 3, generator=generator)).square().mean().backward()
        opt.step()
        opt.zero_grad()


def assert_close(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def split(module: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": (p for p in module.parameters() if p.dim() > 1)},
        {"params": []},
        {"params": filter(lambda p: p.dim() == 1, module.parameters()), "lr": 0.01},
    ]


GIVEN: dict[str, Callable[[nn.Module], Any]] = {
    "parameters": lambda module: module.parameters(),
    "list": lambda module: list(module.parameters()),
    "named": lambda module: module.named_parameters(),
    "groups": split,
    "named groups": lambda module: [{"params": module.named_parameters()}],
    "one tensor in a group": lambda module: [{"params": param} for param in module.parameters()],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_it_trains_as_with_torch(given: Callable[[nn.Module], Any]) -> None:
    ours, theirs = net(), net()
    params = list(ours.parameters())
    opt = fv.optim.AdamW(given(ours), lr=0.1, max_norm=None)
    ref = torch.optim.AdamW(given(theirs), lr=0.1)
    run(ours, opt)
    run(theirs, ref)
    assert_close(ours, theirs)
    assert all(a is b for a, b in zip(ours.parameters(), params, strict=True))
    assert [len(group["params"]) for group in opt.param_groups] == [len(group["params"]) for group in ref.param_groups]
    run(ours, opt, 2)
    ref.load_state_dict(opt.state_dict())  # and back to torch
    opt.store.check()


def test_names_are_those_that_were_given_or_numbers() -> None:
    module = net()
    assert list(fv.optim.SGD(module.named_parameters(), lr=0.1).store) == [n for n, _ in module.named_parameters()]
    assert list(fv.optim.SGD(net().parameters(), lr=0.1).store) == ["0", "1", "2", "3", "4"]
    twins = [{"params": list(linear().named_parameters())} for _ in range(2)]
    assert list(fv.optim.SGD(twins, lr=0.1).store) == ["weight", "bias", "weight__2", "bias__3"]
    odd = [("", nn.Parameter(torch.ones(1))), ("a..b", nn.Parameter(torch.ones(1)))]
    assert list(fv.optim.SGD(odd, lr=0.1).store) == ["0", "a._.b"]


def test_nothing_moves_before_the_first_step() -> None:
    module = net()
    before = [param.data_ptr() for param in module.parameters()]
    fv.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no 'wieght_decay'"):
        fv.optim.SGD([{"params": module.parameters(), "wieght_decay": 0.1}])
    assert [param.data_ptr() for param in module.parameters()] == before
    opt = fv.optim.SGD(module.parameters(), lr=0.1)
    module.double()  # as torch's optimizers allow
    module(torch.ones(2, 3).double()).sum().backward()
    opt.step()
    assert {region.dtype for region in opt.store.regions} == {torch.float64}
    opt.store.check()


def test_frozen_ones_stay_so_until_they_are_thawed() -> None:
    ours, theirs = net(), net()
    for module in (ours, theirs):
        module[0].requires_grad_(False)
    opt = fv.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    ref = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        run(ours, opt, 2)
        run(theirs, ref, 2)
        assert_close(ours, theirs)
        for module in (ours, theirs):
            module[0].requires_grad_(True)
    assert not torch.equal(ours[0].weight, net()[0].weight)


def test_plain_leaf_tensors() -> None:
    start = torch.tensor([1.0, -2.0])
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    number = torch.zeros((), requires_grad=True)  # as the entropy coefficient of an actor and critic
    opt, ref = fv.optim.Adam([ours, number], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(3):
        (ours.square().sum() + number).backward()
        theirs.square().sum().backward()
        for each in (opt, ref):
            each.step()
            each.zero_grad()
    torch.testing.assert_close(ours, theirs)
    assert number.item() == pytest.approx(-0.3, rel=1e-4)


def test_parameters_that_come_later() -> None:
    ours, theirs = net(), net()
    made = [
        make(module[:2].parameters(), lr=0.1) for make, module in ((fv.optim.AdamW, ours), (torch.optim.AdamW, theirs))
    ]
    for opt, module in zip(made, (ours, theirs), strict=True):
        run(module, opt, 2)
        opt.add_param_group({"params": (p for p in module[2].parameters()), "lr": 0.05})
        run(module, opt, 2)
    assert_close(ours, theirs)
    assert len(made[0].store) == len(list(ours.parameters()))
    empty = fv.optim.SGD([{"params": []}], lr=0.1)
    late = linear()
    empty.add_param_group({"params": late.parameters()})
    backward(late)
    empty.step()
    assert not torch.equal(late.weight, linear().weight)


def test_a_second_optimizer_over_the_same_parameters() -> None:
    """A cell that is run again, a second fit: with the first still there and more beside, and when it is gone."""
    ours, theirs = net(), net()
    opt = fv.optim.SGD(ours[0].parameters(), lr=0.1, momentum=0.9)
    run(ours, opt, 2)
    run(theirs, torch.optim.SGD(theirs[0].parameters(), lr=0.1, momentum=0.9), 2)
    first = opt.store
    opt = fv.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)  # more than the first had
    assert opt.store is first
    for _ in range(2):
        for module in (ours, theirs):
            module.zero_grad()
        run(ours, opt, 2)
        run(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9), 2)
        assert_close(ours, theirs)
        first = None
        del opt
        opt = fv.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)  # no store holds them any more
    assert first is None
    opt.store.check()


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("used", [False, True])
def test_the_store_goes_with_the_last_optimizer_and_its_memory_with_the_last_parameter(used: bool) -> None:
    module = net()
    opt, other = (fv.optim.AdamW(module.parameters(), lr=0.1) for _ in range(2))
    if used:
        run(module, opt, 1)
        run(module, other, 1)
    registry = weakref.ref(opt.registry)
    memory = weakref.ref(opt.store.values.untyped_storage())
    assert other.registry is opt.registry
    del opt
    run(module, other, 1)
    del other
    assert registry() is None
    assert memory() is not None
    value = copy.deepcopy(module.state_dict())
    assert all(torch.equal(value[name], tensor) for name, tensor in module.state_dict().items())
    del module
    assert memory() is None


def test_watching_gives_what_adopting_gives(tmp_path: Path) -> None:
    module = net()
    module[2].requires_grad_(False)
    opt = fv.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=0.1)
    run(module, opt, 2)
    opt.store.watch(module)
    assert set(opt.store) == set(module.state_dict())
    run(module, opt, 2)
    assert opt.store["1.running_mean"].value.data_ptr() == module[1].running_mean.data_ptr()
    opt.store.save(tmp_path / "all.safetensors", opt)
    again = net()
    again[2].requires_grad_(False)
    store = fv.VarStore.from_module(again)
    other = fv.optim.AdamW([p for p in again.parameters() if p.requires_grad], lr=0.1)
    store.load(tmp_path / "all.safetensors", other)
    run(module, opt, 2)
    run(again, other, 2)
    assert_close(module, again)
    module[0] = nn.Linear(3, 4)
    with pytest.raises(fv.AliasError, match=r"0\.weight"):
        run(module, opt, 1)


def test_modules_that_are_watched_may_have_prefixes_and_fail_as_a_whole() -> None:
    one, two = linear(), linear()
    opt = fv.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)
    opt.store.watch(one, "actor")
    assert list(opt.store) == ["actor.weight", "actor.bias", "2", "3"]
    two.register_buffer("weight_", torch.ones(1))
    opt.store.add("critic.weight_", torch.zeros(2))
    with pytest.raises(fv.NameTakenError):
        opt.store.watch(two, "critic")
    assert list(opt.store)[2:4] == ["2", "3"]
    opt.store.remove("critic.weight_")
    opt.store.watch(two, "critic")
    assert list(opt.store) == ["actor.weight", "actor.bias", "critic.weight", "critic.bias", "critic.weight_"]


def test_copies_go_on_alone() -> None:
    module = net()
    opt = fv.optim.AdamW(module.parameters(), lr=0.1)
    run(module, opt, 2)
    for again, other in (copy.deepcopy((module, opt)), pickle.loads(pickle.dumps((module, opt)))):
        run(again, other, 1)
        twin, former = copy.deepcopy((module, opt))
        run(twin, former, 1)
        assert_close(again, twin)
        other.add_param_group({"params": linear().parameters()})  # it is still a store that grows with its optimizers
        assert len(other.store) == len(opt.store) + 2
        assert not torch.equal(again[0].weight, module[0].weight)


def test_parameters_that_are_exchanged_by_hand_are_followed_and_do_not_pile_up() -> None:
    """Gaussian splatting: new Parameters of other shapes, in the groups and in the state."""
    ours, theirs = Points(4), Points(4)
    opt, ref = fv.optim.Adam(groups(ours), lr=0.1), torch.optim.Adam(groups(theirs), lr=0.1)
    for rows in ([0, 0, 1, 2, 3, 3], [0, 2, 5], [0, 1, 2, 2]):
        for module, each in ((ours, opt), (theirs, ref)):
            for _ in range(3):
                module().backward()
                each.step()
                each.zero_grad()
            densify(module, each, rows)
    ours().backward()
    opt.step()
    theirs().backward()
    ref.step()
    assert_close(ours, theirs)
    assert len(opt.store) == 3
    opt.store.check()


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "computed": (lambda: [torch.ones(2, requires_grad=True) * 2], ValueError, "non-leaf Tensor.*'0'"),
    "meta": (lambda: nn.Linear(2, 2, device="meta").parameters(), fv.SpecError, "meta device.*from_module"),
    "complex": (lambda: [nn.Parameter(torch.ones(2, dtype=torch.cfloat))], fv.SpecError, "'0' is torch.complex64"),
    "sharing": (lambda: sharing(), fv.SpecError, "share memory"),
}


def sharing() -> list[nn.Parameter]:
    whole = torch.ones(4)
    return [nn.Parameter(whole[:3]), nn.Parameter(whole[2:])]


@pytest.mark.parametrize(("params", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_no_store_can_hold_is_refused(params: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fv.optim.SGD(params(), lr=0.1)


def test_adopting_by_hand_afterwards_takes_over() -> None:
    module = net()
    opt = fv.optim.SGD(module.parameters(), lr=0.1)
    run(module, opt, 1)
    store = fv.VarStore.from_module(module)
    with pytest.raises(fv.FlatvarsError, match="adopted anew"):
        run(module, opt, 1)
    run(module, fv.optim.SGD(store, lr=0.1), 1)
