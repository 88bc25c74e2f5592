"""What takes a Parameter's memory out of the store is followed: training goes on as with torch, and is told once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv

from .training import assert_same, states, values

X = torch.tensor([[1.0, 2.0, -3.0], [0.5, -1.0, 2.0]])
MODES = ["gather", "views"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    dtype = next(module.parameters()).dtype
    for _ in range(steps):
        module(X.to(dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def pair(mode: str, **options: object) -> tuple[nn.Module, fv.VarStore, fv.optim.SGD, nn.Module, torch.optim.SGD]:
    """A model in a store and its twin under torch.optim."""
    module, twin = net(), net()
    store = fv.VarStore.from_module(module, grads=mode, **options)
    ours, theirs = (kind(m.parameters(), 0.1, 0.9) for kind, m in ((fv.optim.SGD, module), (torch.optim.SGD, twin)))
    return module, store, ours, twin, theirs


def others(module: nn.Module) -> list[Tensor]:
    return [torch.full_like(param, 0.25) for param in module.parameters()]


def assign(module: nn.Module) -> None:
    for param, other in zip(module.parameters(), others(module), strict=True):
        param.data = other


MOVES: dict[str, Callable[[nn.Module], object]] = {
    "one": lambda module: setattr(module[0].weight, "data", torch.full((3, 3), 0.5)),
    "all": assign,
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(torch.full((24,), 0.5), m.parameters()),
    "transposed": lambda module: setattr(module[2].weight, "data", module[2].weight.data.t()),
    "double": lambda module: module.double(),
}


@contextmanager
def told_once() -> Iterator[None]:
    with pytest.warns(fv.MovedWarning) as caught:
        yield
    assert len([one for one in caught if one.category is fv.MovedWarning]) == 1


@pytest.mark.filterwarnings("ignore:grad and param do not obey:UserWarning")
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("move", MOVES)
def test_training_goes_on_as_with_torch(move: str, mode: str, steps: int) -> None:
    module, store, ours, twin, theirs = pair(mode)
    train(module, ours, steps)
    train(twin, theirs, steps)
    for each in (module, twin):
        MOVES[move](each)
    # torch keeps float32 momentum for a float64 parameter, and then cannot add the two.
    if move == "double":
        for state in theirs.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].double()
    with told_once():
        train(module, ours, 3)
    train(twin, theirs, 3)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-6, atol=1e-7)
        assert param.dtype == twin.get_parameter(name).dtype
    store.check()


CALLS: dict[str, Callable[[fv.VarStore, fv.optim.SGD, Path], object]] = {
    "step": lambda store, optimizer, path: optimizer.step(),
    "accumulate": lambda store, optimizer, path: store.accumulate(),
    "grad_norm": lambda store, optimizer, path: store.grad_norm(),
    "norms": lambda store, optimizer, path: store.norms(),
    "clip_grad_norm_": lambda store, optimizer, path: store.clip_grad_norm_(1.0),
    "check": lambda store, optimizer, path: store.check(),
    "save": lambda store, optimizer, path: store.save(path / "file.safetensors", optimizer),
    "snapshot": lambda store, optimizer, path: store.snapshot(optimizer),
    "ravel": lambda store, optimizer, path: store.ravel(),
    "clone": lambda store, optimizer, path: store.clone(),
    "deepcopy": lambda store, optimizer, path: copy.deepcopy(store),
    "to": lambda store, optimizer, path: store.to("cpu"),
    "compact": lambda store, optimizer, path: store.compact(),
    "add_module": lambda store, optimizer, path: store.add_module(nn.Linear(2, 2), "more"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("move", ["one", "double"])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_follows_before_it_looks(call: str, move: str, mode: str, tmp_path: Path) -> None:
    module, store, optimizer, _, _ = pair(mode)
    train(module, optimizer, 1)
    MOVES[move](module)
    before = values(module)
    module(X.to(module[0].weight.dtype)).square().mean().backward()
    gradient = module[0].weight.grad.clone()
    with told_once():
        CALLS[call](store, optimizer, tmp_path)
    if call != "step":
        assert_same(values(module), before)
        if call != "clip_grad_norm_":
            torch.testing.assert_close(store["0.weight"].grad, gradient, rtol=0, atol=0)
    assert store["0.weight"].dtype == module[0].weight.dtype
    store.registry.guard.check_memory()  # nothing is left to follow


@pytest.mark.parametrize("mode", MODES)
def test_state_masks_and_counts_are_kept(mode: str) -> None:
    module, store, optimizer, _, _ = pair(mode)
    mask = torch.eye(3) > 0
    store.set_trainable_mask("0.weight", mask)
    train(module, optimizer, 2)
    before = {key: value.double() for key, value in states(optimizer).items()}
    module.double()
    with told_once():
        store.check()
    assert_same({key: value.double() for key, value in states(optimizer).items()}, before)
    assert torch.equal(store.trainable_mask("0.weight"), mask)


@pytest.mark.parametrize("mode", MODES)
def test_a_submodule_that_converts_itself_in_its_forward(mode: str) -> None:
    """As routers of mixtures of experts do."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.body = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.gate = self.gate.to(torch.bfloat16)
            return self.body(x) * self.gate(x.bfloat16()).float()

    runs = []
    for kind in ("ours", "theirs"):
        torch.manual_seed(1)
        module = Router()
        if kind == "ours":
            store = fv.VarStore.from_module(module, grads=mode)
            with told_once():
                train(module, fv.optim.SGD(store, lr=0.1), 3)
            assert store["gate.weight"].dtype == torch.bfloat16
            store.check()
        else:
            train(module, torch.optim.SGD(module.parameters(), lr=0.1), 3)
        runs.append(values(module))
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=1e-2 if "gate" in name else 1e-3, atol=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_every_step_may_assign_anew(mode: str) -> None:
    """As averaging over processes by `param.data = ...` does."""
    module, store, ours, twin, theirs = pair(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fv.MovedWarning)
        for step in range(4):
            train(module, ours, 1)
            train(twin, theirs, 1)
            for one, other in zip(module.parameters(), twin.parameters(), strict=True):
                one.data, other.data = one.data * 0.5 + step, other.data * 0.5 + step
        train(module, ours, 1)
        train(twin, theirs, 1)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_an_expanded_part_of_the_buffer_becomes_values() -> None:
    module, store, _, _, _ = pair("gather")
    module[0].weight.data = module[0].weight.data[1].expand(3, 3)
    row = module[0].weight[1].detach().clone()
    with told_once():
        store.check()
    assert torch.equal(module[0].weight, row.expand(3, 3))
    assert module[0].weight.is_contiguous()


@pytest.mark.parametrize("frozen", ["flag", "store"])
def test_what_is_frozen_is_followed_where_values_are_read(frozen: str) -> None:
    module, store, optimizer, _, _ = pair("gather")
    store.freeze("0.*") if frozen == "store" else module[0].requires_grad_(False)
    assign(module)
    with told_once():
        train(module, optimizer, 1)
    assert torch.equal(store.unravel(store.ravel())["0.weight"], torch.full((3, 3), 0.25))
    assert torch.equal(module[0].weight, torch.full((3, 3), 0.25))


def test_buffers_are_converted_with_their_module() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    store = fv.VarStore.from_module(module, buffers=True)
    optimizer = fv.optim.SGD(store, lr=0.1)
    module.double()
    with told_once():
        train(module, optimizer, 1)
    store.check()
    assert store["0.running_mean"].dtype == torch.float64
    assert store["0.running_mean"].param is module[0].running_mean


# What would lose something -----------------------------------------------------------------------------------------


LOSSES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "shape": (lambda m: setattr(m[0].weight, "data", torch.ones(2, 3)), r"'0\.weight'.*another shape"),
    "shared memory": (lambda m: m.share_memory(), r"share_memory_\(\)"),
    "another variable's": (lambda m: setattr(m[0].weight, "data", m[2].weight.data), r"shares memory with"),
    "each other's": (
        lambda m: [setattr(layer.weight, "data", one) for one in [torch.ones(3, 3)] for layer in (m[0], m[2])],
        r"shares memory with variable '2\.weight'",
    ),
    "complex": (lambda m: setattr(m[0].weight, "data", torch.ones(3, 3, dtype=torch.complex64)), r"complex64"),
    "released storage": (lambda m: setattr(m[0].weight, "data", emptied()), r"resized to 0 bytes"),
}


def emptied() -> Tensor:
    tensor = torch.ones(3, 3)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_would_lose_something_raises_and_changes_nothing(loss: str, mode: str) -> None:
    module, store, optimizer, _, _ = pair(mode)
    train(module, optimizer, 1)
    flat = store.values.clone()
    change, message = LOSSES[loss]
    change(module)
    for call in (optimizer.step, store.check, store.ravel):
        with pytest.raises(fv.AliasError, match=message):
            call()
    store.restore_aliases()
    assert torch.equal(store.values, flat)
    store.check()


def test_a_module_on_meta_has_no_values() -> None:
    module, store, _, _, _ = pair("gather")
    flat = store.values.clone()
    module.to("meta")
    with pytest.raises(fv.AliasError, match=r"rebind"):
        store.check()
    with pytest.raises(fv.AliasError, match=r"'0\.weight' in: it lies on the meta device"):
        store.rebind()
    assert torch.equal(store.values, flat)


def test_a_piece_of_the_buffer_cannot_be_resized() -> None:
    """torch says so: the memory is the store's."""
    module, store, _, _, _ = pair("gather")
    with pytest.raises(RuntimeError, match="not resizable"):
        module[0].weight.untyped_storage().resize_(0)
    store.check()


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"on_moved='ignore'.*'follow' or 'error'"):
        fv.VarStore(on_moved="ignore")


@pytest.mark.parametrize("way", ["deepcopy", "clone", "merge"])
def test_copies_keep_the_policy(way: str) -> None:
    module = net()
    store = fv.VarStore.from_module(module, on_moved="error")
    made = {"deepcopy": copy.deepcopy, "clone": fv.VarStore.clone, "merge": lambda one: fv.VarStore.merge([one])}[way]
    other = made(store)
    other["0.weight"].param.data = torch.ones(3, 3)
    with pytest.raises(fv.AliasError, match=r"'0\.weight'"):
        other.check()


# Gradients that were moved -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_whose_memory_was_replaced_is_stepped(mode: str) -> None:
    """`.grad.data = ...`, which leaves the same tensor in `.grad`."""
    module, _, ours, twin, theirs = pair(mode)
    for each, optimizer in ((module, ours), (twin, theirs)):
        train(each, optimizer, 1)
        each(X).square().mean().backward()
        for param in each.parameters():
            param.grad.data = param.grad.data * 3.0
        optimizer.step()
        optimizer.zero_grad()
        train(each, optimizer, 1)
    for name, param in module.named_parameters():
        torch.testing.assert_close(param, twin.get_parameter(name), rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::flatvars.MovedWarning")
@pytest.mark.parametrize("look", ["values", "values_of", "regions", "grads_of"])
@pytest.mark.parametrize("how", ["data", "double", "buffer"])
def test_flat_buffers_are_those_of_what_modules_use_now(how: str, look: str) -> None:
    """They were the memory that the Parameters had left."""
    module = nn.ParameterDict({"w": torch.zeros(2)})
    module.register_buffer("running", torch.zeros(2))
    store = fv.VarStore.from_module(module)
    dtype = torch.float64 if how == "double" else torch.float32
    with torch.no_grad():
        if how == "buffer":
            module.running = torch.full((2,), 7.0)
        elif how == "data":
            module["w"].data = torch.full((2,), 7.0)
        else:
            module.double()
            module["w"].fill_(7.0)
    if look == "regions":
        assert [region.dtype for region in store.regions] == [dtype]
    elif look == "grads_of":
        assert store.grads_of(dtype).dtype == dtype
    else:
        values = store.values if look == "values" else store.values_of(dtype)
        assert values.dtype == dtype
        assert values.sum().item() == 14.0


def test_a_dtype_that_no_variable_has_is_named() -> None:
    store = fv.VarStore.from_module(nn.Linear(2, 2))
    for call in (store.values_of, store.grads_of):
        with pytest.raises(fv.errors.FlatvarsError, match=r"no variable of torch\.float64, but of torch\.float32"):
            call(torch.float64)
