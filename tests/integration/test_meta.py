"""Modules on the meta device: carved, then initialized in place, as if they had been built on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import ResNet, TiedLanguageModel

from .training import assert_same, linear, values

BUILDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 2),
    "nested": lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2, bias=False))),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "gru-in-a-parent": lambda: nn.ModuleDict({"rnn": nn.GRU(3, 4), "head": nn.Linear(4, 2)}),
    "batch-norm": ResNet,
    "embedding": lambda: nn.Embedding(7, 3, padding_idx=0),
    "bfloat16": lambda: nn.Linear(3, 2, dtype=torch.bfloat16),
}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


@pytest.mark.row("P-R-12")
@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "with-buffers"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_values_are_those_of_the_same_seed(build: Callable[[], nn.Module], buffers: bool) -> None:
    torch.manual_seed(3)
    expected = build()
    module = on_meta(build)
    torch.manual_seed(3)
    store = fv.VarStore.from_module(module, buffers=buffers)
    assert_same(dict(module.state_dict()), dict(expected.state_dict()))
    assert list(store)[: len(values(expected))] == list(values(expected))
    assert store.device == torch.device("cpu")
    store.check()


@pytest.mark.parametrize("build", [lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), ResNet], ids=["mlp", "net"])
def test_it_trains_as_one_that_was_built_on_the_cpu(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    plain, module = build(), on_meta(build)
    torch.manual_seed(3)
    stores = [fv.VarStore.from_module(net) for net in (plain, module)]
    opts = [fv.optim.AdamW(net.parameters(), lr=0.1) for net in (plain, module)]
    x = torch.randn(2, 3, 8, 8) if isinstance(plain, ResNet) else torch.randn(2, 3)
    for _ in range(3):
        for net, opt in zip((plain, module), opts, strict=True):
            opt.zero_grad()
            net(x).square().sum().backward()
            opt.step()
    assert_same(dict(module.state_dict()), dict(plain.state_dict()))
    assert stores[1]["head.bias" if isinstance(plain, ResNet) else "1.bias"].value.any()


@pytest.mark.row("P-R-12")
def test_an_lstm_runs_and_trains() -> None:
    """RNNs hold weak references to their Parameters, so those are replaced: in the module and in its flat weights."""
    module = on_meta(lambda: nn.LSTM(3, 4))
    store = fv.VarStore.from_module(module)
    opt = fv.optim.SGD(store, lr=0.1)
    before = values(module)
    module(torch.ones(5, 1, 3))[0].sum().backward()
    opt.step()
    assert all(param is store[name].param for name, param in module.named_parameters())
    assert not any(torch.equal(param, before[name]) for name, param in module.named_parameters())
    assert all(weight is getattr(module, name) for weight, name in zip(*flat_weights(module), strict=True))


def flat_weights(module: nn.LSTM) -> tuple[list[torch.Tensor], list[str]]:
    return module._flat_weights, module._flat_weights_names


def test_parameters_keep_identity_and_attributes() -> None:
    module = on_meta(linear)
    weight = module.weight
    weight.tag = "mine"
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    store = fv.VarStore.from_module(module)
    assert module.weight is weight is store["weight"].param
    assert weight.tag == "mine"
    assert opt.param_groups[0]["params"][0] is module.weight


def test_tied_weights_stay_tied() -> None:
    module = on_meta(TiedLanguageModel)
    store = fv.VarStore.from_module(module)
    assert module.head.weight is module.embed.weight
    assert store["head.weight"] is store["embed.weight"]
    assert module.embed.weight.isfinite().all()


def test_conversion_while_adopting() -> None:
    module = on_meta(linear)
    store = fv.VarStore.from_module(module, dtype=torch.bfloat16)
    assert module.weight.dtype == store["weight"].dtype == torch.bfloat16
    assert module.weight.any()
    store.check()


class Silent(nn.Module):
    """Owns a parameter and a buffer, and does not say how to initialize them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.gain = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.arange(4.0))


def test_a_module_without_reset_parameters_is_refused() -> None:
    module = on_meta(lambda: nn.Sequential(Silent()))
    with pytest.raises(fv.SpecError, match=r"module '0' \(Silent\) is on the meta device.*reset_parameters.*init="):
        fv.VarStore.from_module(module)
    assert all(param.is_meta for param in module.parameters())


def ones(owner: nn.Module) -> None:
    for tensor in [*owner.parameters(recurse=False), *owner.buffers(recurse=False)]:
        tensor.fill_(1.0)


@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "with-buffers"])
def test_init_is_applied_to_every_submodule(buffers: bool) -> None:
    module = on_meta(Silent)
    seen: list[nn.Module] = []
    store = fv.VarStore.from_module(module, buffers=buffers, init=lambda owner: [seen.append(owner), ones(owner)])
    assert seen == [module.inner, module]
    assert all((tensor == 1).all() for tensor in module.state_dict().values())
    assert ("table" in store) == buffers
    store.check()


def test_an_error_of_init_passes_through() -> None:
    def broken(owner: nn.Module) -> None:
        raise ArithmeticError("no values today")

    with pytest.raises(ArithmeticError, match="no values today"):
        fv.VarStore.from_module(on_meta(linear), init=broken)


def test_init_is_left_out_where_nothing_is_on_meta() -> None:
    module = linear()
    before = values(module)
    fv.VarStore.from_module(module, init=ones)
    assert_same(values(module), before)


def test_a_module_partly_on_meta_keeps_the_values_it_has() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), on_meta(lambda: nn.Linear(4, 2)))
    before = values(module[0])
    torch.manual_seed(5)
    expected = nn.Linear(4, 2)
    torch.manual_seed(5)
    store = fv.VarStore.from_module(module)
    assert_same(values(module[0]), before)
    assert_same(values(module[1]), values(expected))
    store.check()


def half_loaded(layer: nn.Module, missing: str) -> nn.Module:
    """As after loading half of a checkpoint into a module on meta."""
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(7)
    setattr(layer, missing, nn.Parameter(layer.get_parameter(missing).to("meta")))
    return layer


@pytest.mark.parametrize("buffers", [False, True], ids=["parameters", "with-buffers"])
@pytest.mark.parametrize(
    ("make", "missing"),
    [(linear, "bias"), (lambda: nn.BatchNorm1d(3), "bias"), (lambda: nn.LSTM(3, 2), "bias_hh_l0")],
    ids=["linear", "batch-norm", "lstm"],
)
def test_a_layer_partly_on_meta_keeps_the_values_it_has(
    make: Callable[[], nn.Module], missing: str, buffers: bool
) -> None:
    """reset_parameters() writes to all of a layer: what was not on meta is put back."""
    layer = half_loaded(make(), missing)
    store = fv.VarStore.from_module(layer, buffers=buffers)
    kept = {name: tensor for name, tensor in layer.state_dict().items() if name != missing}
    assert_same(kept, {name: torch.full_like(tensor, 7) for name, tensor in kept.items()})
    assert layer.get_parameter(missing).isfinite().all()
    assert not torch.equal(layer.get_parameter(missing), torch.full_like(layer.get_parameter(missing), 7))
    store.check()
