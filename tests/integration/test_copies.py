"""Copies of an adopted module: free of the store. `tests/dropin/test_copies.py` copies stores and optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import flatvars as fv
from tests.support.models import TiedLanguageModel

from .training import adopted, assert_same, backward, linear, values


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_a_file(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "file": through_a_file,
}


@pytest.mark.row("P-A-11")
@pytest.mark.parametrize("mode", ["gather", "views"])
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_module_is_independent(duplicate: Callable[[nn.Module], nn.Module], mode: str) -> None:
    module, store, opt = adopted(mode)
    twin = duplicate(module)
    before = values(module)
    assert_same(values(twin), before)
    backward(module)
    opt.step()
    assert_same(values(twin), before)
    moved = values(module)
    with torch.no_grad():
        twin.weight.fill_(7.0)
    assert_same(values(module), moved)
    store.check()


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_lies_in_no_store_and_can_be_adopted(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    module, _, _ = adopted()
    twin = duplicate(module)
    with pytest.raises(fv.FlatvarsError, match="no store holds"):
        fv.VarStore.of(twin)
    store = fv.VarStore.from_module(twin)
    assert store.values.data_ptr() != module.weight.data_ptr()
    opt = fv.optim.SGD(twin.parameters(), lr=0.1)
    backward(twin)
    opt.step()
    assert not torch.equal(twin.weight, module.weight)
    store.check()


def test_a_deepcopy_holds_its_own_bytes_only() -> None:
    module = nn.Sequential(nn.Linear(100, 100), nn.Linear(2, 2))
    fv.VarStore.from_module(module)
    part = copy.deepcopy(module[1])
    assert part.weight.untyped_storage().nbytes() == 4 * 4


def test_a_deepcopy_keeps_ties() -> None:
    module = TiedLanguageModel()
    fv.VarStore.from_module(module)
    twin = copy.deepcopy(module)
    assert twin.head.weight is twin.embed.weight
    assert twin.head.weight is not module.head.weight


def test_a_state_dict_in_a_file_is_as_large_as_the_model() -> None:
    """All views share one storage, and torch saves a storage once."""
    module = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    plain, flat = io.BytesIO(), io.BytesIO()
    torch.save(module.state_dict(), plain)
    fv.VarStore.from_module(module)
    torch.save(module.state_dict(), flat)
    assert flat.tell() < 1.05 * plain.tell()
    flat.seek(0)
    assert_same(torch.load(flat), {name: value.clone() for name, value in module.state_dict().items()})


@pytest.mark.row("P-A-11")
def test_an_averaged_model_follows_the_training() -> None:
    module, _, opt = adopted(steps=0)
    plain = linear()
    reference = torch.optim.AdamW(plain.parameters(), lr=0.1)
    averages = [AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for net in (module, plain)]
    for _ in range(5):
        for net, optimizer, average in zip((module, plain), (opt, reference), averages, strict=True):
            optimizer.zero_grad()
            backward(net)
            optimizer.step()
            average.update_parameters(net)
    for ours, theirs in zip(averages[0].parameters(), averages[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-7)
    assert not torch.equal(averages[0].module.weight, module.weight)


def test_the_way_an_optimizer_is_moved_to_a_copy() -> None:
    module, _, opt = adopted(steps=3)
    twin = copy.deepcopy(module)
    store = fv.VarStore.from_module(twin)
    other = fv.optim.AdamW(store, lr=1.0)
    other.load_state_dict(opt.state_dict())

    def weight(net: nn.Linear, optimizer: fv.optim.AdamW) -> Tensor:
        backward(net)
        optimizer.step()
        return net.weight.detach()

    assert torch.equal(weight(module, opt), weight(twin, other))
