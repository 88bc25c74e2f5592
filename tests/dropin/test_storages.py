"""Every variable is a tensor with a storage of its own, in the buffer: whoever asks for storages sees no ties."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

import flatvars as fv
from tests.integration.training import assert_same, values
from tests.support.models import Orders, ResNet, TiedLanguageModel


def addresses(module: nn.Module) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def test_storages_begin_and_end_with_their_variables() -> None:
    module = ResNet()
    store = fv.VarStore.from_module(module, buffers=True)
    for variable in store.variables().values():
        storage = variable.param.untyped_storage()
        assert storage.nbytes() == variable.spec.numel * variable.dtype.itemsize
        assert variable.param.storage_offset() == 0
    assert len(set(addresses(module))) == len(addresses(module))
    store.values_of(torch.float32).fill_(3.0)
    assert bool((module.norm.running_mean == 3.0).all())


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.int64]
)
def test_every_dtype_and_shape(dtype: torch.dtype) -> None:
    store = fv.VarStore()
    for shape in ((), (0,), (1,), (3, 0), (33,), (2, 3, 4)):
        value = torch.ones(shape).to(dtype)
        store.add(f"v{len(store)}", value, trainable=dtype.is_floating_point)
        assert torch.equal(store[f"v{len(store) - 1}"].value, value)
    assert store.values.sum() == 1 + 1 + 33 + 24
    store.check()


def test_a_variable_keeps_the_buffer_alive() -> None:
    module = nn.Linear(3, 2)
    store = fv.VarStore.from_module(module)
    weight, expected = module.weight.detach(), module.weight.detach().clone()
    del module, store
    junk = [torch.full((32,), 9.0) for _ in range(100)]
    assert torch.equal(weight, expected)
    assert len(junk) == 100


@pytest.mark.row("P-A-13")
@pytest.mark.parametrize("make", [ResNet, TiedLanguageModel, Orders], ids=["buffers", "tied", "orders"])
def test_safetensors_saves_and_loads_a_module_in_place(make: type[nn.Module], tmp_path: Path) -> None:
    """As it does without a store: the file of a tied model names the weight once."""
    torch.manual_seed(0)
    module = make()
    store = fv.VarStore.from_module(module, buffers=True)
    before, places = values(module), addresses(module)
    save_model(module, str(tmp_path / "model.safetensors"))
    assert len(load_file(tmp_path / "model.safetensors")) == len(store)
    for region in store.regions:
        store.values_of(region.dtype).zero_()
    load_model(module, str(tmp_path / "model.safetensors"))
    assert_same(values(module), before)
    assert addresses(module) == places
    store.check()


@pytest.mark.row("P-A-13")
def test_safetensors_refuses_ties_and_strides_as_ever(tmp_path: Path) -> None:
    tied = TiedLanguageModel()
    fv.VarStore.from_module(tied)
    with pytest.raises(RuntimeError, match=r"share memory"):
        save_file(tied.state_dict(), tmp_path / "tied")
    orders = Orders()
    fv.VarStore.from_module(orders)
    with pytest.raises(ValueError, match=r"non contiguous"):
        save_file(orders.state_dict(), tmp_path / "orders")


@pytest.mark.row("P-A-14")
def test_orders_are_kept_and_expanded_ones_filled() -> None:
    module = Orders()
    plain = copy.deepcopy(module)
    fv.VarStore.from_module(module)
    for name, param in module.named_parameters():
        twin = getattr(plain, name)
        assert torch.equal(param, twin)
        if name not in ("expanded", "sliced"):
            assert param.stride() == twin.stride()


@pytest.mark.row("P-A-15")
def test_alignment_and_padding() -> None:
    store = fv.VarStore.from_module(ResNet())
    for variable in store.variables().values():
        assert variable.span.offset * variable.dtype.itemsize % 128 == 0
        assert variable.param.data_ptr() % 64 == 0
    store.check()  # padding is zero


@pytest.mark.row("P-A-11")
def test_a_deepcopy_of_a_module_with_buffers_holds_its_own_bytes_only() -> None:
    module = ResNet()
    fv.VarStore.from_module(module, buffers=True)
    twin = copy.deepcopy(module)
    assert twin.norm.running_mean.untyped_storage().nbytes() == twin.norm.running_mean.nbytes
    assert twin.norm.weight.untyped_storage().nbytes() == twin.norm.weight.nbytes
