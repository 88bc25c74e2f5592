"""Element masks through the life of a store: set, replaced, removed, carried along, and gone with their memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.tolerances import assert_same_bits

from .training import values

STREAM = "frozen_elements"


class Two(nn.Module):
    """An embedding and a layer over it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(6, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.emb(ids))


ROWS = torch.tensor([True, False, True, True, False, True]).view(6, 1)


def adopted(mode: str = "gather") -> tuple[Two, fv.VarStore, fv.optim.AdamW]:
    module = Two()
    store = fv.VarStore.from_module(module, grads=mode)
    return module, store, fv.optim.AdamW(store, lr=0.1, weight_decay=0.1)


def train(module: nn.Module, optimizer: Any, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.arange(6)).square().sum().backward()
        optimizer.step()


def streams(store: fv.VarStore) -> list[str]:
    return store.registry.streams.names()


def test_the_stream_exists_only_while_an_element_is_masked() -> None:
    module, store, optimizer = adopted()
    train(module, optimizer)
    before = store.registry.streams.nbytes
    assert STREAM not in streams(store)
    store.set_trainable_mask("emb.weight", ROWS)
    store.set_trainable_mask("out.bias", torch.tensor([False, True]))
    assert STREAM in streams(store)
    # One byte an element of the region's trainable part, whatever is masked.
    assert store.registry.streams.nbytes == before + store.regions[0].trainable_numel
    store.set_trainable_mask("emb.weight", None)
    assert STREAM in streams(store)
    store.set_trainable_mask("out.bias", torch.tensor(True))
    assert STREAM not in streams(store)
    assert store.registry.streams.nbytes == before
    train(module, optimizer)


def test_only_regions_with_a_mask_pay() -> None:
    store = fv.VarStore()
    store.add("wide", torch.randn(100))
    store.add("narrow", torch.randn(100).bfloat16())
    before = store.registry.streams.nbytes
    store.set_trainable_mask("narrow", torch.arange(100) < 50)
    assert (STREAM, torch.bfloat16) in store.registry.streams
    assert (STREAM, torch.float32) not in store.registry.streams
    assert store.registry.streams.nbytes == before + store.registry.layout.region_of[torch.bfloat16].trainable_numel


def test_what_is_set_is_read() -> None:
    _, store, _ = adopted()
    assert store.trainable_mask("emb.weight") is None
    store.set_trainable_mask("emb.weight", ROWS)
    mask = store.trainable_mask("emb.weight")
    assert mask is not None
    assert mask.dtype == torch.bool
    assert torch.equal(mask, ROWS.expand(6, 3))
    assert store.trainable_mask("out.weight") is None
    mask.fill_(True)  # a copy
    assert torch.equal(store.trainable_mask("emb.weight"), ROWS.expand(6, 3))
    store.set_trainable_mask("emb.weight", ~ROWS.expand(6, 3))
    assert torch.equal(store.trainable_mask("emb.weight"), ~ROWS.expand(6, 3))
    store.set_trainable_mask("emb.weight", ROWS.all(dim=1).new_ones(()))
    assert store.trainable_mask("emb.weight") is None


@pytest.mark.parametrize("given", [torch.tensor(False), torch.tensor([True, False, True]), ROWS, ROWS.expand(6, 3)])
def test_masks_broadcast(given: torch.Tensor) -> None:
    _, store, _ = adopted()
    store.set_trainable_mask("emb.weight", given)
    assert torch.equal(store.trainable_mask("emb.weight"), given.expand(6, 3))


def test_patterns_mask_all_that_match() -> None:
    module, store, optimizer = adopted()
    store.set_trainable_mask(["out.*"], torch.tensor(False))
    before = values(module)
    train(module, optimizer)
    for name, value in values(module).items():
        assert torch.equal(value, before[name]) == name.startswith("out."), name
    store.set_trainable_mask("*", None)
    assert STREAM not in streams(store)


ERRORS: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "name": ("nowhere", ROWS, fv.UnknownNameError, "matches none"),
    "list": ("emb.weight", [True], fv.MaskError, r"mask for 'emb.weight' is \[True\].*dense bool tensor is needed"),
    "float": ("emb.weight", ROWS.float(), fv.MaskError, r"torch\.float32 tensor.*dense bool tensor is needed"),
    "meta": ("emb.weight", ROWS.to("meta"), fv.MaskError, "meta.*dense bool tensor is needed"),
    "shape": ("emb.weight", torch.ones(6) > 0, fv.MaskError, r"shape \(6,\).*broadcast.*\(6, 3\).*\[rows, 1\]"),
    "axes": ("out.bias", torch.ones(1, 2) > 0, fv.MaskError, r"shape \(1, 2\).*broadcast"),
    # The bias takes this mask, the weight does not: neither has it then.
    "one-of-two": ("out.*", torch.tensor([True, False]), fv.MaskError, r"'out\.weight' has shape \(2,\)"),
    "no-room": ("fixed", torch.tensor(False), fv.MaskError, r"'fixed' has no room.*unfreeze"),
}


@pytest.mark.parametrize(("name", "mask", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_refused_masks_change_nothing(name: str, mask: Any, error: type[Exception], message: str) -> None:
    _, store, _ = adopted()
    store.add("fixed", torch.ones(3), trainable=False)
    store.set_trainable_mask("emb.weight", ROWS)
    generation = store.registry.generation
    with pytest.raises(error, match=message):
        store.set_trainable_mask(name, mask)
    assert store.registry.generation == generation
    assert torch.equal(store.trainable_mask("emb.weight"), ROWS.expand(6, 3))
    assert store.trainable_mask("out.bias") is None


def test_an_unknown_name_has_no_mask_to_show() -> None:
    _, store, _ = adopted()
    with pytest.raises(fv.UnknownNameError, match="nowhere"):
        store.trainable_mask("nowhere")


def test_what_was_never_masked_may_be_cleared_anywhere() -> None:
    _, store, _ = adopted()
    store.add("fixed", torch.ones(3), trainable=False)
    store.set_trainable_mask("*", None)
    assert store.trainable_mask("fixed") is None


KEEPING: dict[str, Callable[[fv.VarStore], object]] = {
    "growth": lambda store: store.add("later", torch.randn(300)),
    "growth-in-another-dtype": lambda store: store.add("later", torch.randn(300).double()),
    "to": lambda store: store.to("cpu"),
    "double": lambda store: store.double(),
    "there-and-back": lambda store: store.double().float(),
    "freeze-another": lambda store: store.freeze("out.*"),
    "compact-another": lambda store: (store.freeze("out.weight"), store.compact()),
    "freeze-and-unfreeze": lambda store: (store.freeze("emb.*"), store.unfreeze("emb.*")),
    "rebind": lambda store: store.rebind(),
}


@pytest.mark.parametrize("change", KEEPING.values(), ids=KEEPING)
@pytest.mark.parametrize("mode", ["gather", "views"])
def test_masks_stay_through(mode: str, change: Callable[[fv.VarStore], object]) -> None:
    module, store, optimizer = adopted(mode)
    train(module, optimizer)
    store.set_trainable_mask("emb.weight", ROWS)
    store.set_trainable_mask("out.bias", torch.tensor([False, True]))
    change(store)
    assert torch.equal(store.trainable_mask("emb.weight"), ROWS.expand(6, 3))
    assert torch.equal(store.trainable_mask("out.bias"), torch.tensor([False, True]))
    assert all(
        store.registry.streams.find(STREAM, r.dtype) is None
        for r in store.regions
        if r.dtype != module.emb.weight.dtype
    )
    emb, state = values(module)["emb.weight"], optimizer.state[module.emb.weight]["exp_avg"].clone()
    train(module, optimizer)
    kept = ~ROWS.expand(6, 3)
    assert_same_bits(module.emb.weight[kept], emb[kept])
    assert_same_bits(optimizer.state[module.emb.weight]["exp_avg"][kept], state[kept])
    assert (module.emb.weight != emb)[~kept].all()
    store.check()


def test_a_module_converted_by_itself_keeps_its_mask() -> None:
    """The region of the old dtype is gone, with its stream."""
    module, store, optimizer = adopted()
    store.set_trainable_mask("emb.weight", ROWS)
    module.emb.double()
    store.rebind()
    assert torch.equal(store.trainable_mask("emb.weight"), ROWS.expand(6, 3))
    assert (STREAM, torch.float64) in store.registry.streams
    assert (STREAM, torch.float32) not in store.registry.streams


def test_compacting_a_frozen_variable_forgets_its_mask() -> None:
    module, store, optimizer = adopted()
    store.set_trainable_mask("emb.weight", ROWS)
    store.freeze("emb.*")
    assert torch.equal(store.trainable_mask("emb.weight"), ROWS.expand(6, 3))
    store.compact()
    assert store.trainable_mask("emb.weight") is None
    assert STREAM not in streams(store)
    store.unfreeze("emb.*")
    before = values(module)["emb.weight"]
    train(module, optimizer)
    assert (module.emb.weight != before).all()


def test_a_frozen_variable_may_be_masked_before_it_trains_again() -> None:
    module, store, optimizer = adopted()
    train(module, optimizer)
    store.freeze("emb.*")
    store.set_trainable_mask("emb.weight", ROWS)
    store.unfreeze("emb.*")
    before = values(module)["emb.weight"]
    train(module, optimizer)
    assert torch.equal((module.emb.weight != before).all(dim=1), ROWS[:, 0])


def test_pending_gradients_are_shown_as_autograd_left_them() -> None:
    module, store, _ = adopted()
    store.set_trainable_mask("emb.weight", ROWS)
    module(torch.arange(6)).square().sum().backward()
    assert module.emb.weight.grad.all()
    store.accumulate()
    assert torch.equal(store["emb.weight"].grad != 0.0, ROWS.expand(6, 3))


def test_check_finds_masked_padding() -> None:
    _, store, _ = adopted()
    store.set_trainable_mask("emb.weight", ROWS)
    store.check()
    store.registry.streams.find(STREAM, torch.float32).buffer[18] = 1  # the embedding has 18 elements
    with pytest.raises(fv.FlatvarsError, match=r"padding of the torch\.float32 region is masked"):
        store.check()


def test_masks_keep_no_store_alive() -> None:
    gc.disable()
    try:
        module, store, optimizer = adopted()
        store.set_trainable_mask("emb.weight", ROWS)
        train(module, optimizer)
        gone = weakref.ref(store.registry.streams.find(STREAM, torch.float32).buffer.untyped_storage())
        assert gone() is not None
        del module, store, optimizer
        assert gone() is None
    finally:
        gc.enable()
