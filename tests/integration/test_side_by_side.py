"""Variables that are laid side by side: the layout moves, and nothing that anybody can see but that."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import flatvars as fv


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for width in (8, 5, 8, 5, 8):
        layers += [nn.Linear(8, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, 8)]
    return nn.Sequential(*layers)


def matrices(store: fv.VarStore) -> list[fv.Variable]:
    return [v for v in store.registry.variables if len(v.shape) == 2]


def names(store: fv.VarStore) -> list[str]:
    return [v.name for v in store.registry.variables]


def backward(module: nn.Module) -> None:
    module(torch.linspace(-1, 1, 32).view(4, 8)).square().mean().backward()


def offsets(store: fv.VarStore) -> list[int]:
    return [span.offset for span in store.registry.layout.spans]


@pytest.mark.parametrize("grads", ["gather", "views"])
@pytest.mark.parametrize("when", ["before", "between", "open"])
def test_training_goes_on_bit_for_bit(grads: str, when: str) -> None:
    """Laid side by side before the first step, between two, or while gradients are open."""
    runs = []
    for arrange in (False, True):
        module = network()
        store = fv.VarStore.from_module(module, grads=grads)
        optimizer = fv.optim.AdamW(store, lr=1e-2)
        for step in range(4):
            if arrange and when == ("before" if step == 0 else "between" if step == 2 else ""):
                store.registry.lay_side_by_side(matrices(store))
            backward(module)
            if arrange and when == "open" and step == 2:
                store.registry.lay_side_by_side(matrices(store))
            optimizer.step()
            optimizer.zero_grad()
        runs.append((module, store, optimizer))
    (plain, unarranged, first), (module, store, second) = runs
    assert offsets(store) != offsets(unarranged)
    assert all(map(torch.equal, module.parameters(), plain.parameters()))
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        assert all(torch.equal(second.state[one][key], first.state[other][key]) for key in first.state[other])
    assert names(store) == names(unarranged)


def test_later_variables_find_their_place_and_frozen_ones_lose_it() -> None:
    module = network()
    store = fv.VarStore.from_module(module)
    store.registry.lay_side_by_side(matrices(store))
    chosen = [v.index for v in matrices(store)]
    assert len(store.registry.layout.batches(chosen)) == 3
    late = store.add("late", nn.Parameter(torch.ones(8, 8)))
    assert late is not None
    store.registry.lay_side_by_side([store["late"]])
    assert len(store.registry.layout.batches([*chosen, store["late"].index])) == 3
    assert store["late"].span.offset < store["0.bias"].span.offset
    store.freeze("0.weight")
    store.compact()
    assert store["0.weight"].span.offset > store["0.bias"].span.offset
    store.unfreeze()
    assert store["0.weight"].span.offset == 0
    assert torch.equal(store["late"].value, torch.ones(8, 8))


def test_files_go_by_names(tmp_path: Path) -> None:
    one, other = (fv.VarStore.from_module(network()) for _ in range(2))
    other.registry.lay_side_by_side(matrices(other))
    one.save(tmp_path / "one.safetensors")
    other.save(tmp_path / "other.safetensors")
    again = fv.VarStore.from_module(network())
    for variable in again.registry.variables:
        variable.value.zero_()
    again.load(tmp_path / "other.safetensors")
    assert all(torch.equal(again[name].value, one[name].value) for name in names(one))
    other.load(tmp_path / "one.safetensors")
    assert all(torch.equal(other[name].value, one[name].value) for name in names(one))


def test_nothing_is_carved_early_and_nothing_twice() -> None:
    store = fv.VarStore()
    root = store.root()
    for i in range(3):
        root.var(f"w{i}", (4, 4), init=fv.init.zeros())
        root.var(f"b{i}", (4,), init=fv.init.zeros())
    store.registry.lay_side_by_side([store[f"w{i}"] for i in range(3)])
    generation = store.registry.generation
    assert [store[f"w{i}"].span.offset for i in range(3)] == [0, 32, 64]
    assert store.registry.generation == generation + 1
    store.registry.lay_side_by_side([store["w1"]])
    assert store.registry.generation == generation + 1


def test_a_copy_trains_on() -> None:
    module = network()
    store = fv.VarStore.from_module(module)
    store.registry.lay_side_by_side(matrices(store))
    optimizer = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    backward(module)
    optimizer.step()
    again, _, optimizer_again = copy.deepcopy((module, store, optimizer))
    for net, opt in ((module, optimizer), (again, optimizer_again)):
        opt.zero_grad()
        backward(net)
        opt.step()
    assert all(map(torch.equal, module.parameters(), again.parameters()))
