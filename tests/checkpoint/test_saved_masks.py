"""Element masks: saved where elements are masked, and restored with the training state."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import flatvars as fv
from flatvars.memory.streams import FROZEN_ELEMENTS

from .support import trained


def some_but(store: fv.VarStore, name: str, index: object) -> Tensor:
    """A mask that trains all elements but those at an index."""
    mask = torch.ones(store[name].shape, dtype=torch.bool)
    mask[index] = False  # type: ignore[index]
    return mask


def assert_mask(store: fv.VarStore, name: str, expected: Tensor) -> None:
    mask = store.trainable_mask(name)
    assert mask is not None
    assert torch.equal(mask, expected)


def test_masks_come_back_with_the_training_state(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _, store, optimizer = trained()
    rows, kernel = some_but(store, "embedding.weight", slice(3, 5)), some_but(store, "conv.weight", (0, 1))
    store.set_trainable_mask("embedding.weight", rows)
    store.set_trainable_mask("conv.weight", kernel)
    store.save(path, optimizer)
    with fv.checkpoint.Checkpoint(path) as file:
        masked = sorted(name for name in file.names() if name.startswith("frozen_elements/"))
        assert masked == ["frozen_elements/conv.weight", "frozen_elements/embedding.weight"]
        assert torch.equal(file.tensor(masked[0]) == 0, kernel)
    _, other, optimizer2 = trained()
    other.set_trainable_mask("head.bias", some_but(other, "head.bias", 0))
    other.load(path)
    assert other.trainable_mask("head.bias") is not None, "values alone were asked for"
    other.load(path, optimizer2)
    assert other.trainable_mask("head.bias") is None
    assert_mask(other, "embedding.weight", rows)
    assert_mask(other, "conv.weight", kernel)
    other.check()


def test_a_snapshot_holds_the_masks_of_its_time() -> None:
    _, store, optimizer = trained()
    rows = some_but(store, "embedding.weight", 3)
    store.set_trainable_mask("embedding.weight", rows)
    snapshot = store.snapshot(optimizer)
    store.set_trainable_mask("embedding.weight", None)
    store.set_trainable_mask("head.bias", some_but(store, "head.bias", 1))
    store.restore(snapshot)
    assert_mask(store, "embedding.weight", rows)
    assert store.trainable_mask("head.bias") is None


def test_the_mask_of_a_name_that_is_a_pattern_too_is_its_own(tmp_path: Path) -> None:
    """`w[0]` is a glob that fits `w0`: names of a file are names."""
    path = tmp_path / "model.safetensors"
    store = fv.VarStore()
    store.add("w[0]", torch.ones(3))
    store.add("w0", torch.ones(3))
    optimizer = fv.optim.SGD(store, lr=0.1)
    mask = torch.tensor([True, False, True])
    store.set_trainable_mask("w[0]", mask)
    assert store.trainable_mask("w0") is None
    store.save(path, optimizer)
    store.set_trainable_mask("w[0]", None)
    store.load(path, optimizer)
    assert_mask(store, "w[0]", mask)
    assert store.trainable_mask("w0") is None


def test_without_masks_no_tensor_is_written(tmp_path: Path) -> None:
    _, store, optimizer = trained(tmp_path / "model.safetensors")
    assert FROZEN_ELEMENTS not in store.registry.streams.names()
    store.load(tmp_path / "model.safetensors", optimizer)
    assert FROZEN_ELEMENTS not in store.registry.streams.names()
    with fv.checkpoint.Checkpoint(tmp_path / "model.safetensors") as file:
        assert not any(name.startswith(FROZEN_ELEMENTS) for name in file.names())
