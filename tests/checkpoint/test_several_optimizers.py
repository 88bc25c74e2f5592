"""Files of several optimizers, of which each may have state for the same variables."""

from __future__ import annotations

from pathlib import Path

import torch

import flatvars as fv
from tests.support.stores import Net, backward, batch


def made() -> tuple[Net, fv.VarStore, list[fv.optim.Optimizer]]:
    torch.manual_seed(0)
    net = Net()
    store = fv.VarStore.from_module(net)
    return net, store, [fv.optim.Lion(store, lr=1e-3), fv.optim.AdamW(store, lr=1e-2)]


def step(net: Net, optimizer: fv.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    backward(net, batch())
    optimizer.step()
    optimizer.zero_grad()


def test_each_has_state_of_one_name_for_one_variable(tmp_path: Path) -> None:
    net, store, optimizers = made()
    for seed in range(4):
        step(net, optimizers[seed % 2], seed)
    store.save(tmp_path / "run.safetensors", optimizers)
    with fv.checkpoint.Checkpoint(tmp_path / "run.safetensors") as file:
        for name, variable in store.variables().items():
            for label, optimizer in zip(("exp_avg", "exp_avg.1"), optimizers, strict=True):
                assert torch.equal(file.tensor(f"{label}/{name}"), optimizer.state[variable.param]["exp_avg"])

    other, again, resumed = made()
    again.load(tmp_path / "run.safetensors", resumed)
    for seed in range(4, 8):
        for one, owners in ((net, optimizers), (other, resumed)):
            step(one, owners[seed % 2], seed)
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_only_the_second_has_state(tmp_path: Path) -> None:
    """The first one finds nothing, and nothing of the second."""
    net, store, optimizers = made()
    step(net, optimizers[1], 0)
    store.save(tmp_path / "run.safetensors", optimizers)
    other, again, resumed = made()
    again.load(tmp_path / "run.safetensors", resumed)
    assert not resumed[0].state_dict()["state"]
    for mine, kept in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(resumed[1].state[mine]["exp_avg"], optimizers[1].state[kept]["exp_avg"])
    for one, owners in ((net, optimizers), (other, resumed)):
        step(one, owners[0], 1)
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
