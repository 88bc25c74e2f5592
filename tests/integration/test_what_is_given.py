"""What users hand over: kept as they mean it, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv

from .training import adopted

MODES = pytest.mark.parametrize("mode", ["gather", "views"])


@MODES
def test_a_plain_leaf_is_the_variable_and_trains(mode: str) -> None:
    store = fv.VarStore(grads=mode)
    log_alpha = torch.zeros(2, requires_grad=True)
    assert store.add("log_alpha", log_alpha) is log_alpha
    opt, patterns = fv.optim.SGD(store, lr=0.5), fv.optim.SGD("*", store=store, lr=0.25)
    for each in (opt, patterns):
        (log_alpha * torch.tensor([1.0, -2.0])).sum().backward()
        each.step()
        each.zero_grad()
    assert torch.equal(log_alpha.detach(), torch.tensor([-0.75, 1.5]))
    assert store.trainable_variables() == [store["log_alpha"]]
    store.freeze("log_alpha")
    assert not log_alpha.requires_grad
    store.unfreeze("log_alpha")
    assert log_alpha.requires_grad
    store.check()


@pytest.mark.parametrize("add", [fv.VarStore.add, lambda store, *each: (store.root() / "x").add(*each)])
def test_a_frozen_parameter_stays_frozen(add: Callable[..., Tensor]) -> None:
    store = fv.VarStore()
    frozen, other = (nn.Parameter(torch.ones(2), requires_grad=False) for _ in range(2))
    assert add(store, "frozen", frozen) is frozen
    assert not frozen.requires_grad
    assert add(store, "other", other, True).requires_grad
    assert not add(store, "fixed", nn.Parameter(torch.ones(2)), False).requires_grad
    assert [len(group["params"]) for group in fv.optim.SGD(store).param_groups] == [2 + 1]
    frozen.requires_grad_(True)
    frozen.grad = torch.ones(2)
    fv.optim.SGD(store, lr=1.0).step()
    assert torch.equal(frozen.detach(), torch.zeros(2))


CONVERSIONS: dict[str, Callable[[nn.Module], Any]] = {
    "double": lambda module: module.double(),
    "to": lambda module: module.to(torch.bfloat16),
    "data": lambda module: setattr(module.weight, "data", torch.ones(3, 3, dtype=torch.float64).T),
}


@MODES
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_what_was_done_last_before_the_first_carve_counts(convert: Callable[[nn.Module], Any], mode: str) -> None:
    module = nn.Linear(3, 3, bias=False)
    store = fv.VarStore(grads=mode)
    store.add("weight", module.weight)
    convert(module)
    dtype, value = module.weight.dtype, module.weight.detach().clone()
    assert torch.equal(store["weight"].value, value)
    opt = fv.optim.SGD(store, lr=1.0)
    module(torch.ones(1, 3, dtype=dtype)).sum().backward()
    opt.step()
    assert module.weight.dtype == store["weight"].dtype == store.values.dtype == dtype
    assert torch.equal(module.weight.detach(), value - 1)
    store.check()


WRONG: dict[str, tuple[Callable[[nn.Module, fv.VarStore], Any], type[Exception], str]] = {
    "store of a module": (lambda module, _: fv.VarStore(module), TypeError, "VarStore.from_module"),  # type: ignore[arg-type]
    "store of parameters": (lambda module, _: fv.VarStore(list(module.parameters())), TypeError, "store.add"),  # type: ignore[arg-type]
    "lerp_": (lambda module, store: store.lerp_(module, 0.5), TypeError, "lerp_ takes a VarStore"),
    "copy_": (lambda module, store: store.copy_(module.state_dict()), TypeError, "module.load_state_dict"),
    "merge": (lambda module, _: fv.VarStore.merge([module]), TypeError, "merge takes a VarStore"),  # type: ignore[list-item]
    "adopt a class": (lambda _, store: fv.VarStore.from_module(nn.Linear), TypeError, "a Linear was given"),  # type: ignore[arg-type]
    "add a module": (lambda module, store: store.add("x", module), TypeError, "store.add_module"),
    "a rule": (lambda module, _: fv.init.apply_(module, {"*": fv.init.zeros}), fv.InitError, "parentheses"),  # type: ignore[dict-item]
    "no rules": (lambda module, _: fv.init.apply_(module, fv.init.zeros()), fv.InitError, "give a dict"),  # type: ignore[arg-type]
    "a variable": (lambda _, store: store.root().var("x", (2,), fv.init.zeros), fv.InitError, "parentheses"),  # type: ignore[arg-type]
    "meta": (
        lambda *_: fv.VarStore.from_module(nn.Linear(2, 2, device="meta"), init=fv.init.zeros),
        fv.InitError,
        "give rules",
    ),
    "an empty ring": (lambda _, store: fv.checkpoint.SnapshotRing(store).restore(), fv.CheckpointError, "ring.take"),
}


@pytest.mark.parametrize(("call", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_taken_says_what_to_do(call: Callable[..., Any], error: type[Exception], words: str) -> None:
    module, store, _ = adopted()
    before = store.values.clone()
    with pytest.raises(error, match=words):
        call(module, store)
    assert torch.equal(store.values, before)
    assert list(store) == ["weight", "bias"]


class Parent(nn.Module):
    """Resets its child with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.empty(2, device="meta"))

    def reset_parameters(self) -> None:
        self.child.reset_parameters()
        nn.init.ones_(self.gain)


def ones(module: nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        nn.init.ones_(tensor)


@pytest.mark.parametrize("init", [None, ones], ids=["reset", "function"])
def test_what_has_values_keeps_them_beside_what_lies_on_meta(init: Any) -> None:
    module = Parent()
    expected = module.child.weight.detach().clone()
    fv.VarStore.from_module(module, init=init)
    assert torch.equal(module.child.weight, expected)
    assert torch.equal(module.gain, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_the_default_dtype_shows_in_no_value(mode: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Adopted, initialized, declared, stepped, saved, loaded, rolled back and looked at: the bits of float32."""

    def run(default: torch.dtype, file: Path) -> list[torch.Tensor]:
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        torch.set_default_dtype(default)
        try:
            store = fv.VarStore.from_module(module, grads=mode, seed=3)
            fv.init.apply_(
                module, {**fv.init.keep_norms(module), "0.weight": fv.init.orthogonal(), "*": fv.init.normal()}
            )
            (store.root() / "more").randn_standard("x", (5,))
            opt = fv.optim.Adagrad(store, initial_accumulator_value=0.1, max_norm=1.0, skip_nonfinite=True)
            opt.state  # noqa: B018
            x = torch.linspace(-1.0, 1.0, 15, dtype=torch.float32).view(5, 3)
            norms = []
            for _ in range(3):
                module(x).square().sum().backward()
                store.accumulate()
                norms += [store.grad_norm(), store.grad_norm(1.0)]
                opt.step()
                opt.zero_grad()
            snapshot = store.snapshot(opt)
            store.save(file, opt)
            store.lerp_(store.clone(), 0.3)
            opt.state[module[0].weight]["sum"] = 0.3
            store.load(file, opt)
            store.restore(snapshot)
            assert fv.VarStore().ravel().dtype == torch.float32
            return [*norms, store.ravel(), *(opt.state[p]["sum"] for p in module.parameters())]
        finally:
            torch.set_default_dtype(torch.float32)

    torch.manual_seed(0)
    expected = run(torch.float32, tmp_path / "a.safetensors")
    torch.manual_seed(0)
    for ours, theirs in zip(run(dtype, tmp_path / "b.safetensors"), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
