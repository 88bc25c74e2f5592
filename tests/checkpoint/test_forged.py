"""Descriptions that lie, with checksums that fit: refused with nothing changed, or loaded and trained on."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import flatvars as fv
from tests.support.stores import Net, backward, batch

from .support import forged, trained

FORGERIES = 75
"""Of each seed."""

ODD: list[Any] = [
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**40, 2**63, 10**400, 1.5, -0.5, 1e308),
    *("", "x", "gain", "torch", "AdamW", "$tuple", "\ud800"),
    *([], [0], [1, 2], ["gain"], {}, {"a": 1}),
    *({"$float": "nan"}, {"$float": "inf"}, {"$float": "x"}, {"$tuple": []}, {"$tuple": [0.9, 0.99]}),
    *({"$tensor": ["F32", [], [1.0]]}, {"$tensor": ["F32", [2], [1.0, 2.0]]}, {"$tensor": ["X", [], [2]]}),
    *(
        {"$dict": [[1, 2]]},
        {"$dict": [[[1], 2]]},
        {"$counter": [[3, 1]]},
        {"$counter": [["a", "b"]]},
        {"$file": "gain"},
    ),
]
KEYS = ["x", "gain", "params", "lr", "$tuple", "step", "last_epoch", "get_lr", "decoupled_weight_decay"]


MAKERS: list[Callable[[fv.VarStore], Any]] = [
    lambda store: fv.optim.AdamW(store, lr=1e-2, amsgrad=True),
    lambda store: fv.optim.NAdam(store, lr=torch.tensor(1e-2)),
    lambda store: fv.optim.SGD([{"params": "*.bias", "lr": 1e-3}, {"params": "*"}], store=store, lr=1e-2, momentum=0.9),
    lambda store: fv.optim.Lion(store, lr=1e-3),
]


class Everything:
    """A run with all that a description speaks of: masks, frozen variables, an unfinished cycle, nested schedulers."""

    def __init__(self, make: Callable[[fv.VarStore], Any]) -> None:
        torch.manual_seed(0)
        self.net = Net()
        self.store = fv.VarStore.from_module(self.net)
        self.optimizer = make(self.store)
        parts = [
            lr_scheduler.LinearLR(self.optimizer, 0.1, total_iters=4),
            lr_scheduler.ExponentialLR(self.optimizer, 0.9),
            lr_scheduler.MultiStepLR(self.optimizer, [3, 5]),
        ]
        sequence = lr_scheduler.SequentialLR(self.optimizer, parts, [2, 4])
        self.schedulers = [sequence, lr_scheduler.ReduceLROnPlateau(self.optimizer)]
        self.generator = torch.Generator()
        self.store.set_trainable_mask("embedding.weight", torch.arange(11).view(-1, 1) > 2)
        self.store.freeze("norm.*")
        self.work()
        backward(self.net, batch())
        self.store.accumulate()
        backward(self.net, batch())

    def work(self) -> None:
        backward(self.net, batch())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedulers[0].step()
        self.schedulers[1].step(1.0)
        torch.rand(1)
        torch.rand(1, generator=self.generator)
        random.random()
        np.random.rand()

    def save(self, path: Path) -> bytes:
        self.store.save(path, self.optimizer, self.schedulers, {"data": self.generator})
        return path.read_bytes()

    def load(self, path: Path) -> None:
        self.store.load(path, self.optimizer, self.schedulers, {"data": self.generator})

    def all_of_it(self) -> str:
        variables = {
            name: (v.value.tolist(), v.requires_grad, v.frozen, v.spec.has_room, grad_of(v.param))
            for name, v in self.store.variables().items()
        }
        generators = torch.get_rng_state(), self.generator.get_state(), np.random.get_state()[1]
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        return repr(
            [
                variables,
                self.store.trainable_mask("embedding.weight"),
                self.optimizer.state_dict(),
                groups,
                [scheduler.state_dict() for scheduler in self.schedulers],
                [sorted(part.__dict__) for part in self.schedulers[0]._schedulers],
                [each.tolist() for each in generators],
                random.getstate(),
            ]
        )


def grad_of(param: torch.Tensor) -> Any:
    return None if param.grad is None else param.grad.tolist()


def mutate(content: dict[str, Any], rng: random.Random) -> list[Any]:
    """Changes one thing in what a load reads, at any depth, and says where."""
    place: list[Any] = [rng.choice(["variables", "streams", "training", "training", "training"])]
    parent, node = content, content[place[0]]
    while isinstance(node, (dict, list)) and node and rng.random() < 0.85:
        place.append(rng.choice(list(node) if isinstance(node, dict) else list(range(len(node)))))
        parent, node = node, node[place[-1]]
    key, kind = place[-1], rng.randrange(10)
    if kind < 6:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    elif kind < 7:
        del parent[key]
    elif kind < 8 and isinstance(parent, dict):
        parent[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD))
    elif isinstance(parent, dict):
        other = rng.choice(list(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif kind < 9:
        parent.insert(key, copy.deepcopy(rng.choice(ODD)))
    else:
        parent.append(copy.deepcopy(node))
    return place


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning", "ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("seed", range(len(MAKERS)))
def test_forged_descriptions_change_nothing_or_load(seed: int, tmp_path: Path) -> None:
    run, rng = Everything(MAKERS[seed]), random.Random(seed)
    path, here = tmp_path / "model.safetensors", tmp_path / "here.safetensors"
    content = run.save(path)
    run.load(path)
    run.work()
    run.save(here)
    before = run.all_of_it()
    refused = 0
    for _ in range(FORGERIES):
        path.write_bytes(content)
        where: list[Any] = []
        forged(path, lambda description, where=where: where.extend(mutate(description, rng)))
        try:
            run.load(path)
        except fv.CheckpointError:
            refused += 1
            assert run.all_of_it() == before, where
        else:
            run.work()  # what was loaded is trained on
            run = Everything(MAKERS[seed])
            run.load(here)
            assert run.all_of_it() == before
    assert refused > 0.6 * FORGERIES


@pytest.mark.parametrize(("saved", "here"), [(2, 3), (3, 2), (1, 3)])
def test_another_number_of_schedulers_changes_nothing(saved: int, here: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def a_run(count: int) -> tuple[fv.VarStore, Any, Any]:
        _, store, optimizer = trained()
        parts = [lr_scheduler.ConstantLR(optimizer, 0.5 + i / 10) for i in range(count)]
        sequence = lr_scheduler.SequentialLR(optimizer, parts, [2 * (i + 1) for i in range(count - 1)])
        return store, optimizer, sequence

    store, optimizer, scheduler = a_run(saved)
    store.save(path, optimizer, scheduler)
    store, optimizer, scheduler = a_run(here)
    store.values.add_(1.0)
    before = repr([store.values.tolist(), optimizer.state_dict(), scheduler.state_dict()])
    with pytest.raises(fv.MismatchError, match=f"_schedulers.* {saved} in the file, and {here} here"):
        store.load(path, optimizer, scheduler)
    assert repr([store.values.tolist(), optimizer.state_dict(), scheduler.state_dict()]) == before


class Stubborn:
    """A scheduler that writes half of a state and then raises."""

    def __init__(self, optimizer: fv.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.history = [1, 2]
        self.inner = {"deep": [3]}
        self.takes = True

    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.append(state["history"].pop())
        self.inner["deep"].append(4)
        self.more = 5
        self.optimizer.param_groups[0]["lr"] = 6.0
        if not self.takes:
            raise KeyError("epoch")


def test_a_scheduler_that_fails_halfway_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _, store, optimizer = trained()
    scheduler = Stubborn(optimizer)
    store.save(path, optimizer, scheduler)
    store.values.add_(1.0)
    before, inner = store.values.clone(), scheduler.inner
    scheduler.takes = False
    with pytest.raises(fv.MismatchError, match="no state that this Stubborn takes: KeyError: 'epoch'"):
        store.load(path, optimizer, scheduler)
    assert scheduler.__dict__ == {"optimizer": optimizer, "history": [1, 2], "inner": {"deep": [3]}, "takes": False}
    assert scheduler.inner is inner
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert torch.equal(store.values, before)
    scheduler.takes = True
    store.load(path, optimizer, scheduler)
    assert scheduler.history == [1, 2, 2], "the state was used up by the trial"


def test_a_file_of_many_levels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _, store, optimizer = trained()
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    store.save(path, optimizer, scheduler)
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    forged(path, lambda content: content["training"]["schedulers"][0]["state"].update(deep=deep))
    with pytest.raises(fv.DamagedFileError, match="has 'training' not as format 1 has it"):
        store.load(path, optimizer, scheduler)
