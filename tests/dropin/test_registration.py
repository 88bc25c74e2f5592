"""Registering, replacing and converting parameters: what torch promises of modules holds of adopted ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import flatvars as fv
from tests.integration.training import adopted, backward, linear, values
from tests.parity.pairs import MODES, Pair

REFUSED: dict[str, tuple[Callable[[nn.Module], object], type[Exception], str]] = {
    "dot": (lambda m: m.register_parameter("a.b", nn.Parameter(torch.ones(1))), KeyError, "contain"),
    "empty": (lambda m: m.register_parameter("", nn.Parameter(torch.ones(1))), KeyError, "empty string"),
    "taken": (lambda m: m.register_parameter("forward", nn.Parameter(torch.ones(1))), KeyError, "already exists"),
    "tensor": (lambda m: m.register_parameter("x", torch.ones(1)), TypeError, "cannot assign"),
    "non-leaf": (lambda m: m.register_parameter("x", m.weight * 1), TypeError, "cannot assign"),
    "assigned": (lambda m: setattr(m, "weight", torch.ones(2, 3)), TypeError, "cannot assign"),
    "view": (lambda m: setattr(m, "weight", m.weight[:1]), TypeError, "cannot assign"),
}


@pytest.mark.row("P-R-01", "P-R-02", "P-R-03")
@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_torch_refuses_what_it_refused(
    call: Callable[[nn.Module], object], error: type[Exception], message: str
) -> None:
    module, store, _ = adopted()
    with pytest.raises(error, match=message):
        call(module)
    store.check()


@pytest.mark.row("P-R-03", "P-A-01", "P-A-02")
def test_variables_are_leaves_with_counters_of_their_own() -> None:
    module, store, _ = adopted()
    assert module.weight.is_leaf
    assert not module.weight._is_view()
    assert type(module.weight) is nn.Parameter
    before = module.bias._version
    with torch.no_grad():
        module.weight.add_(1.0)
        store.values.mul_(2.0)
    assert module.bias._version == before


@pytest.mark.row("P-R-05")
def test_a_module_is_carved_while_it_is_built() -> None:
    store = fv.VarStore()
    with store.capture():
        module = linear()
    twin = linear()
    assert torch.equal(module.weight, twin.weight)  # reset_parameters had drawn its values
    assert len(nn.modules.module._global_parameter_registration_hooks) == 0
    assert store["weight"].param is module.weight


@pytest.mark.row("P-R-06")
def test_flags_and_dtypes_of_new_parameters() -> None:
    store = fv.VarStore()
    with torch.no_grad():
        assert store.root().zeros("a", (2,)).requires_grad
    with pytest.raises(fv.SpecError, match=r"only floating dtypes"):
        store.add("b", torch.ones(2, dtype=torch.int64))
    with torch.inference_mode():
        frozen = torch.ones(2)
    module = nn.Module()
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        module.weight = nn.Parameter(frozen)


@pytest.mark.row("P-R-07", "P-R-08")
def test_names_order_and_ties() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    names = [name for name, _ in module.named_parameters()]
    every = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    store = fv.VarStore.from_module(module)
    assert [name for name, _ in module.named_parameters()] == names == list(store)
    assert [name for name, _ in module.named_parameters(remove_duplicate=False)] == every
    assert store.numel == 9 + 3 + 3
    assert set(module.state_dict()) == set(every)
    twin = copy.deepcopy(module)
    assert twin[0].weight is twin[1].weight
    assert module.double()[0].weight is module[1].weight


@pytest.mark.row("P-R-10")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.*is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("mode", MODES)
def test_reparametrized_modules_train_as_without_a_store(wrap: Callable[[nn.Module], nn.Module], mode: str) -> None:
    """Reparametrized first, adopted then."""
    torch.manual_seed(0)
    module, plain = wrap(linear()), wrap(linear())
    plain.load_state_dict(module.state_dict())
    opt = fv.optim.SGD(fv.VarStore.from_module(module, grads=mode), lr=0.1)
    ref = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        for net, optimizer in ((module, opt), (plain, ref)):
            optimizer.zero_grad()
            net(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-6, atol=5e-7)


@pytest.mark.row("P-R-10", "P-R-01")
def test_lists_and_dicts_of_parameters() -> None:
    module = nn.Module()
    module.list = nn.ParameterList([torch.ones(2), torch.zeros(3)])
    module.dict = nn.ParameterDict({"a": torch.ones(1)})
    store = fv.VarStore.from_module(module)
    assert list(store) == ["list.0", "list.1", "dict.a"]
    module.list[0] = nn.Parameter(torch.full((2,), 7.0))
    with pytest.raises(fv.AliasError, match=r"'list\.0' is no longer used"):
        store.check_aliases()
    assert store.rebind() == ["list.0"]
    module.list.append(nn.Parameter(torch.ones(4)))
    store.add("list.2", module.list[2])
    assert store["list.2"].param is module.list[2]


@pytest.mark.row("P-A-09")
def test_data_of_another_shape_or_dtype_is_noticed() -> None:
    module, store, opt = adopted()
    backward(module)
    module.weight.data = torch.ones(3, 2)
    with pytest.raises(fv.AliasError, match=r"shape \(3, 2\).*store\.restore_aliases\(\)"):
        opt.step()
    store.restore_aliases()
    opt.step()
    store.check()


@pytest.mark.row("P-A-08")
def test_vectors_of_parameters() -> None:
    """Reading is torch's; writing back is `unravel` and `set_value`, or torch's, which the next step follows."""
    module, store, opt = adopted()
    vector = nn.utils.parameters_to_vector(module.parameters())
    assert torch.equal(vector, store.ravel())
    nn.utils.vector_to_parameters(2 * vector, module.parameters())
    backward(module)
    with pytest.warns(fv.MovedWarning, match=r"vector_to_parameters"):
        store.check()
    assert torch.equal(store.ravel(), 2 * vector)
    for name, value in store.unravel(vector).items():
        store[name].set_value(value)
    assert torch.equal(nn.utils.parameters_to_vector(module.parameters()), vector)
    opt.step()


@pytest.mark.row("P-O-08", "P-O-07")
def test_a_state_dict_is_a_view_and_loading_is_in_place() -> None:
    module, store, _ = adopted()
    state = module.state_dict()
    store["weight"].value.fill_(3.0)
    assert bool((state["weight"] == 3.0).all())
    assert state._metadata == linear().state_dict()._metadata
    module.load_state_dict(linear().double().state_dict())
    assert module.weight.dtype == torch.float32
    assert torch.equal(store["weight"].value, linear().weight)
    with pytest.raises(RuntimeError, match=r"size mismatch"):
        module.load_state_dict({"weight": torch.ones(1), "bias": torch.ones(2)})
    store.check()


@pytest.mark.row("P-X-07", "P-A-01")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("mode", MODES)
def test_recurrent_layers(kind: type[nn.RNNBase], mode: str) -> None:
    """Their flat list of weights holds the store's Parameters, and flatten_parameters() leaves them there."""
    pair = Pair.of(kind(3, 4, num_layers=2, bidirectional=True), "adamw", mode)
    pair.ours.flatten_parameters()
    held = {id(weight) for weight in pair.ours._flat_weights}
    assert held == {id(param) for param in pair.ours.parameters()}
    inputs = torch.linspace(-1.0, 1.0, 30).view(5, 2, 3)
    for _ in range(3):
        pair.zero_grad()
        pair.both(lambda net: net(inputs)[0].square().sum())
        pair.step()
    pair.assert_values_close()
    pair.store.check()


@pytest.mark.row("P-A-03")
def test_swapped_tensors_are_noticed() -> None:
    module, store, opt = adopted()
    torch.utils.swap_tensors(module.weight, nn.Parameter(torch.ones(2, 3)))
    backward(module)
    with pytest.warns(fv.MovedWarning, match=r"'weight'"):
        opt.step()
    assert not torch.equal(module.weight, torch.ones(2, 3))
    kept = values(module)
    torch.utils.swap_tensors(module.weight, nn.Parameter(torch.ones(2, 3)))
    store.restore_aliases()
    assert torch.equal(module.weight, kept["weight"])
