"""Element masks: saved where the stream of frozen elements exists, and restored through the store's own setter."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import flatvars as fv
from flatvars.checkpoint.image import MASKS
from flatvars.checkpoint.load import Options, load
from flatvars.checkpoint.snapshot import restore
from flatvars.optim.base import always

from .support import trained


def mask(store: fv.VarStore, name: str) -> Tensor:
    """The stream's part of a variable, nonzero where it is not trained; made if there is none."""
    registry = store._registry
    registry.streams.get(MASKS, torch.float32, partial(always, torch.bool))
    return registry.view(MASKS, registry.by_name[name])


def test_masks_come_back_with_the_training_state(tmp_path: Path) -> None:
    _, store, optimizer = trained()
    mask(store, "embedding.weight")[3:5] = True
    mask(store, "conv.weight")[0, 1] = True
    store.save(tmp_path / "model.safetensors", optimizer)
    with fv.checkpoint.Checkpoint(tmp_path / "model.safetensors") as file:
        masked = [name for name in file.names() if name.startswith("frozen_elements/")]
        assert sorted(masked) == ["frozen_elements/conv.weight", "frozen_elements/embedding.weight"]
        assert torch.equal(file.tensor(masked[0]), mask(store, masked[0].partition("/")[2]))
    _, other, optimizer2 = trained()
    mask(other, "head.bias")[0] = True
    calls: dict[str, Tensor | None] = {}
    registry = other._registry
    load(registry, tmp_path / "model.safetensors", Options(optimizer2), lambda n, m: calls.update({n: m}))
    assert set(calls) == {"embedding.weight", "conv.weight", "head.bias"}
    assert calls["head.bias"] is None
    assert torch.equal(calls["embedding.weight"], ~mask(store, "embedding.weight"))
    assert torch.equal(calls["conv.weight"], ~mask(store, "conv.weight"))
    calls.clear()
    load(registry, tmp_path / "model.safetensors", Options(), lambda n, m: calls.update({n: m}))
    assert calls == {}


def test_a_snapshot_holds_the_masks_of_its_time() -> None:
    _, store, optimizer = trained()
    mask(store, "embedding.weight")[3] = True
    expected = ~mask(store, "embedding.weight")
    snapshot = store.snapshot(optimizer)
    mask(store, "embedding.weight").zero_()
    mask(store, "head.bias")[1] = True
    calls: dict[str, Tensor | None] = {}
    restore(store._registry, snapshot, lambda n, m: calls.update({n: m}))
    assert set(calls) == {"embedding.weight", "head.bias"}
    assert torch.equal(calls["embedding.weight"], expected)
    assert calls["head.bias"] is None


def test_without_masks_no_tensor_is_written(tmp_path: Path) -> None:
    _, store, optimizer = trained(tmp_path / "model.safetensors")
    assert MASKS not in store._registry.streams.names()
    store.load(tmp_path / "model.safetensors", optimizer)
    assert MASKS not in store._registry.streams.names()
    mask(store, "head.bias")
    store.save(tmp_path / "model.safetensors", optimizer)
    with fv.checkpoint.Checkpoint(tmp_path / "model.safetensors") as file:
        assert not any(name.startswith(MASKS) for name in file.names())


def test_masks_that_cannot_be_set_are_refused(tmp_path: Path) -> None:
    _, store, optimizer = trained()
    mask(store, "head.bias")[0] = True
    store.save(tmp_path / "model.safetensors", optimizer)
    _, other, optimizer2 = trained()
    with pytest.raises(fv.MismatchError, match=r"masks elements of 'head\.bias'"):
        load(other._registry, tmp_path / "model.safetensors", Options(optimizer2), None)
