"""A resumed run is the uninterrupted one, bit for bit; and what cannot be resumed is said before anything changes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import flatvars as fv
from tests.support.stores import Net, backward, batch

from .resume import CASES, run_part
from .support import assert_values, trained, values

ROOT = Path(__file__).parents[2]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes on is a process of its own: it has nothing but the file. The others run here."""
    folder = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch's schedulers
        for part in ("straight", "first"):
            run_part(part, folder)
    command = [sys.executable, "-W", "ignore::UserWarning", "-m", "tests.checkpoint.resume", "second", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.process
def test_ten_steps_a_new_process_and_ten_more_are_twenty(name: str, runs: Path) -> None:
    straight: dict[str, Any] = torch.load(runs / f"{name}.straight")
    resumed: dict[str, Any] = torch.load(runs / f"{name}.second")
    assert straight.keys() == resumed.keys()
    for key, value in straight.items():
        if isinstance(value, Tensor):
            assert value.dtype == resumed[key].dtype
            assert torch.equal(bits(value), bits(resumed[key])), key
        else:
            assert value == resumed[key], key


@pytest.mark.process
def test_skipped_steps_were_skipped(runs: Path) -> None:
    assert torch.load(runs / "adamw.second")["skipped"] == 1
    assert torch.load(runs / "micro-batches accumulated.second")["skipped"] == 0


def test_state_of_a_variable_that_was_never_stepped_becomes_nothing(tmp_path: Path) -> None:
    net, store, optimizer = trained(steps=0)
    backward(net, batch())
    net.conv.bias.grad = None
    optimizer.step()
    store.save(tmp_path / "model.safetensors", optimizer)
    net2, store2, optimizer2 = trained(steps=3)
    store2.load(tmp_path / "model.safetensors", optimizer2)
    assert optimizer2.state[net2.conv.bias] == {}
    assert not optimizer2.capture().streams["exp_avg", torch.float32].view(store2["conv.bias"].span).any()
    assert float(optimizer2.state[net2.head.weight]["step"]) == 1.0


def test_two_optimizers_over_one_store(tmp_path: Path) -> None:
    def make() -> tuple[Net, fv.VarStore, list[fv.optim.Optimizer]]:
        torch.manual_seed(0)
        net = Net()
        store = fv.VarStore.from_module(net)
        head = fv.optim.AdamW([{"params": "head.*"}], store=store, lr=1e-2)
        body = fv.optim.SGD([{"params": ["embedding.*", "norm.*"]}], store=store, lr=1e-2, momentum=0.9)
        return net, store, [head, body]

    net, store, optimizers = make()
    backward(net, batch())
    for optimizer in optimizers:
        optimizer.step()
    net.zero_grad()
    store.save(tmp_path / "model.safetensors", optimizers)
    net2, store2, optimizers2 = make()
    store2.load(tmp_path / "model.safetensors", optimizers2)
    assert_values(store2, values(store))
    for mine, theirs in zip(optimizers2, optimizers, strict=True):
        assert repr(mine.state_dict()) == repr(theirs.state_dict())
    with pytest.raises(fv.MismatchError, match="the file holds 2 optimizers, and 1 were given"):
        store2.load(tmp_path / "model.safetensors", optimizers2[0])


def test_renamed_runs_resume(tmp_path: Path) -> None:
    _, store, optimizer = trained(tmp_path / "model.safetensors")
    outer = nn.Module()
    outer.inner = Net()
    store2 = fv.VarStore.from_module(outer)
    optimizer2 = fv.optim.AdamW(store2, lr=1.0)
    store2.load(tmp_path / "model.safetensors", optimizer2, rename=[("^", "inner.")])
    assert repr(optimizer2.state_dict()) == repr(optimizer.state_dict())
    assert_values(store2, {f"inner.{name}": value for name, value in values(store).items()})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: (fv.optim.Adam(s, lr=1.0), None), "holds the state of a AdamW, and the optimizer is a Adam"),
        (
            lambda s: (fv.optim.AdamW([{"params": "head.*"}, {"params": "*"}], store=s, lr=1.0), None),
            "has 1 param groups, and the optimizer 2",
        ),
        (
            lambda s: (fv.optim.AdamW([{"params": "head.*"}], store=s, lr=1.0), None),
            "param group 0 holds 8 variables, and the optimizer's 2",
        ),
        (
            lambda s: ((o := fv.optim.AdamW(s, lr=1.0)), lr_scheduler.StepLR(o, 3)),
            "the file holds 0 schedulers, and 1 were given",
        ),
    ],
    ids=["class", "groups", "members", "schedulers"],
)
def test_another_run_is_refused_before_anything_changes(make, message: str, tmp_path: Path) -> None:
    trained(tmp_path / "model.safetensors")
    store = fv.VarStore.from_module(Net())
    optimizer, scheduler = make(store)
    before, described = values(store), repr(optimizer.state_dict())
    with pytest.raises(fv.MismatchError, match=message):
        store.load(tmp_path / "model.safetensors", optimizer, scheduler)
    assert_values(store, before)
    assert repr(optimizer.state_dict()) == described


def test_files_of_values_alone_do_not_resume(tmp_path: Path) -> None:
    _, store, optimizer = trained()
    store.save(tmp_path / "model.safetensors")
    with pytest.raises(fv.MismatchError, match="holds values alone: it was saved without optimizer="):
        store.load(tmp_path / "model.safetensors", optimizer)
    with pytest.raises(fv.MismatchError, match="holds no random number generators: it was saved without rng="):
        store.load(tmp_path / "model.safetensors", rng=True)
    with pytest.raises(fv.CheckpointError, match="SGD is no flatvars optimizer over this store"):
        store.save(tmp_path / "model.safetensors", torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def test_generators_are_saved_without_an_optimizer(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(nn.Linear(2, 2))
    generator = torch.Generator().manual_seed(5)
    store.save(tmp_path / "model.safetensors", rng={"data": generator})
    expected = (float(torch.rand(())), float(torch.rand((), generator=generator)))
    store.load(tmp_path / "model.safetensors", rng={"data": generator})
    assert (float(torch.rand(())), float(torch.rand((), generator=generator))) == expected
    with pytest.raises(fv.MismatchError, match="holds no state 'rng/generator/other'"):
        store.load(tmp_path / "model.safetensors", rng={"other": generator})


def test_a_gradient_cycle_of_another_mode_is_refused(tmp_path: Path) -> None:
    net, store, optimizer = trained()
    backward(net, batch())
    store.save(tmp_path / "model.safetensors", optimizer)
    views = fv.VarStore.from_module(Net(), grads="views")
    with pytest.raises(fv.MismatchError, match="saved within a cycle with grads='gather', and the store has 'views'"):
        views.load(tmp_path / "model.safetensors", fv.optim.AdamW(views, lr=1.0))


def test_sparse_pending_gradients_are_refused_when_saving(tmp_path: Path) -> None:
    model = nn.Embedding(5, 3, sparse=True)
    store = fv.VarStore.from_module(model)
    optimizer = fv.optim.SGD(store, lr=0.1)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(fv.CheckpointError, match=r"pending gradient of 'weight' is torch\.sparse_coo"):
        store.save(tmp_path / "model.safetensors", optimizer)
    store.accumulate()
    store.save(tmp_path / "model.safetensors", optimizer)


def test_a_tensor_learning_rate_stays_the_tensor_it_is(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(nn.Linear(2, 2))
    optimizer = fv.optim.AdamW(store, lr=torch.tensor(0.25))
    store.save(tmp_path / "model.safetensors", optimizer)
    held = optimizer.param_groups[0]["lr"]
    held.fill_(1.0)
    store.load(tmp_path / "model.safetensors", optimizer)
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == 0.25
    plain = fv.optim.AdamW(store, lr=1.0)
    store.load(tmp_path / "model.safetensors", plain)
    assert plain.param_groups[0]["lr"] == 0.25


def test_state_that_is_no_data_is_refused(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(nn.Linear(2, 2))
    optimizer = fv.optim.AdamW(store, lr=0.1)

    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"step": 1, "function": print}

    with pytest.raises(fv.CheckpointError, match=r"Odd\['function'\] holds a builtin_function_or_method"):
        store.save(tmp_path / "model.safetensors", optimizer, Odd())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["file", "snapshot", "assigned"])
def test_states_that_are_rounded_at_random_go_on_with_the_draws_of_their_store(way: str, tmp_path: Path) -> None:
    """The seed is in the file: a store that was made with another one would draw others."""

    def made(seed: int) -> tuple[nn.Parameter, fv.VarStore, fv.optim.AdamW]:
        store = fv.VarStore(seed=seed)
        param = store.add("w", torch.ones(64))
        assert isinstance(param, nn.Parameter)
        return param, store, fv.optim.AdamW([param], store=store, lr=0.1, state_dtype=torch.bfloat16)

    def train(param: nn.Parameter, optimizer: fv.optim.AdamW) -> None:
        for step in range(4):
            param.grad = torch.linspace(-1.0, 2.0, 64) * (step + 1)
            optimizer.step()

    param, store, optimizer = made(2**64 - 1)
    train(param, optimizer)
    store.save(tmp_path / "run.safetensors", optimizer)
    snapshot = store.snapshot(optimizer)
    train(param, optimizer)
    expected, moments = param.detach().clone(), optimizer.state[param]["exp_avg_sq"].clone()
    if way == "snapshot":
        store.seed = 1
        store.restore(snapshot)
    else:
        param, store, optimizer = made(1 if way == "file" else 2**64 - 1)
        if way == "assigned":  # while keys of another seed are there already
            store.seed = 1
            train(param, optimizer)
        store.load(tmp_path / "run.safetensors", optimizer)
    train(param, optimizer)
    assert torch.equal(optimizer.state[param]["exp_avg_sq"], moments)
    assert torch.equal(param, expected)
