"""State that lies in no stream: of parameters that were frozen before the store was made, and what users put there."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

from .support import parts

Run = tuple[nn.Module, fv.VarStore, Any]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def work(module: nn.Module, optimizer: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    module(torch.randn(5, 3, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def of_torch() -> tuple[nn.Module, torch.optim.AdamW]:
    """Two steps of all parameters, before the first layer is frozen."""
    module = net()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(2):
        work(module, optimizer)
    module[0].requires_grad_(False)
    return module, optimizer


def taken_over() -> Run:
    """A store over the frozen model, which has no room for the first layer, goes on from torch."""
    module, theirs = of_torch()
    store = fv.VarStore.from_module(module)
    optimizer = fv.optim.AdamW(list(module.parameters()), lr=0.1)
    optimizer.load_state_dict(theirs.state_dict())
    assert not store["0.weight"].spec.has_room
    return module, store, optimizer


def fresh(frozen: bool) -> Run:
    module = net()
    if frozen:
        module[0].requires_grad_(False)
    store = fv.VarStore.from_module(module)
    return module, store, fv.optim.AdamW(list(module.parameters()), lr=0.1)


def check_same_state(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for index, entry in theirs.items():
        assert mine[index].keys() == entry.keys()
        for name, value in entry.items():
            assert torch.equal(torch.as_tensor(mine[index][name]), torch.as_tensor(value)), (index, name)


def check_goes_on_as_torch(run: Run) -> None:
    """Unfrozen, and stepped three times more."""
    module, optimizer = of_torch()
    for each in (module, run[0]):
        each[0].requires_grad_(True)
    for _ in range(3):
        work(module, optimizer)
        work(run[0], run[2])
    for mine, theirs in zip(run[0].parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("frozen", [True, False], ids=["without room", "with room"])
@pytest.mark.parametrize("size", [None, 100], ids=["file", "shards"])
def test_a_file_holds_the_state_of_what_was_frozen_before(frozen: bool, size: int | None, tmp_path: Path) -> None:
    _, store, optimizer = taken_over()
    store.save(tmp_path / "model.safetensors", optimizer, shard_size=size)
    run = fresh(frozen)
    run[1].load(tmp_path / "model.safetensors", run[2])
    check_same_state(run[2].state_dict()["state"], of_torch()[1].state_dict()["state"])
    assert not run[0][0].weight.requires_grad
    check_goes_on_as_torch(run)


def test_it_lies_under_the_name_of_the_variable(tmp_path: Path) -> None:
    _, store, optimizer = taken_over()
    store.save(tmp_path / "model.safetensors", optimizer)
    header, _ = parts((tmp_path / "model.safetensors").read_bytes())
    assert header["loose/0/exp_avg/0.weight"]["shape"] == [4, 3]
    assert not any(name.startswith("loose/0/step") for name in header)
    fresh(True)[1].load(tmp_path / "model.safetensors")  # values alone
    with fv.checkpoint.Checkpoint(tmp_path / "model.safetensors") as file:
        held = file.tensor("loose/0/exp_avg/0.weight")
    assert torch.equal(held, optimizer.state_dict()["state"][0]["exp_avg"])


def through_a_snapshot(run: Run) -> None:
    snapshot = run[1].snapshot(run[2])
    run[2].state[run[0][0].weight]["exp_avg"].zero_()  # what was copied is no longer theirs
    for _ in range(2):
        del run[2].state[run[0][0].weight]
        run[1].restore(snapshot)
        run[2].state[run[0][0].bias]["exp_avg_sq"].add_(1.0)
    run[1].restore(snapshot)


def through_a_ring(run: Run) -> None:
    ring = fv.checkpoint.SnapshotRing(run[1], run[2], keep=2)
    ring.take()
    run[2].state[run[0][0].weight]["exp_avg"].zero_()
    ring.restore()


def through_a_snapshots_file(run: Run) -> None:
    stream = io.BytesIO()
    snapshot = run[1].snapshot(run[2])
    run[2].state[run[0][0].weight]["exp_avg"].zero_()
    snapshot.save(stream, wait=True)
    stream.seek(0)
    run[1].load(stream, run[2])


@pytest.mark.parametrize("way", [through_a_snapshot, through_a_ring, through_a_snapshots_file])
def test_a_snapshot_holds_it(way: Callable[[Run], None]) -> None:
    run = taken_over()
    way(run)
    check_same_state(run[2].state_dict()["state"], of_torch()[1].state_dict()["state"])
    check_goes_on_as_torch(run)


def test_a_copy_holds_it() -> None:
    run = taken_over()
    copied: Run = copy.deepcopy(run)
    run[2].state[run[0][0].weight]["exp_avg"].zero_()
    check_same_state(copied[2].state_dict()["state"], of_torch()[1].state_dict()["state"])
    check_goes_on_as_torch(copied)


def test_what_users_put_beside_the_states_comes_back(tmp_path: Path) -> None:
    module, store, optimizer = taken_over()
    trained, frozen = module[1].weight, module[0].weight
    optimizer.state[trained]["note"] = ("a", 3, torch.tensor([1.0, 2.0]))
    optimizer.state[trained]["mask"] = torch.arange(8).view(2, 4)
    optimizer.state[frozen]["mask"] = torch.ones(2, 3, dtype=torch.bool)
    expected = copy.deepcopy(optimizer.state_dict()["state"])
    store.save(tmp_path / "model.safetensors", optimizer)
    snapshot = store.snapshot(optimizer)
    for restore in (lambda: store.restore(snapshot), lambda: store.load(tmp_path / "model.safetensors", optimizer)):
        for param in (trained, frozen):
            del optimizer.state[param]
        restore()
        found = optimizer.state_dict()["state"]
        assert found[2]["note"][:2] == ("a", 3)
        assert torch.equal(found[2]["note"][2], torch.tensor([1.0, 2.0]))
        for index, name in ((2, "mask"), (0, "mask"), (2, "exp_avg"), (0, "exp_avg")):
            assert torch.equal(found[index][name], expected[index][name]), (index, name)


def test_what_no_file_can_hold_is_named(tmp_path: Path) -> None:
    module, store, optimizer = taken_over()
    entry = optimizer.state[module[0].weight]
    for name, value, words in (
        ("owner", object(), "the optimizer's state 'owner' of '0.weight' holds a object"),
        ("mask", torch.eye(3).to_sparse(), "is torch.float32 and torch.sparse_coo, which files cannot hold"),
        (7, 1.0, "the optimizer's state 7 of '0.weight' has no text for a name"),
    ):
        entry[name] = value
        with pytest.raises(fv.CheckpointError, match=words):
            store.save(tmp_path / "model.safetensors", optimizer)
        del entry[name]
    assert list(tmp_path.iterdir()) == []
