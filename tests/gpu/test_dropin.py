"""On a GPU: GradScaler with float16 autocast without a synchronization, and recurrent layers that cuDNN flattens."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.host_sync import cuda_raises

INPUTS = torch.linspace(-1.0, 1.0, 5 * 2 * 3).view(5, 2, 3)


def scaled_step(model, optimizer, scaler, inputs, poison):
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(inputs).float().square().sum()
    scaler.scale(loss).backward()
    if poison:
        next(model.parameters()).grad.view(-1)[0] = torch.inf
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.row("P-O-06")
@pytest.mark.parametrize("poisoned", [None, 2])
def test_float16_training_under_a_scaler(poisoned, device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 4)).to(device)
    plain = copy.deepcopy(model)
    ours = fv.optim.AdamW(fv.VarStore.from_module(model), lr=0.01)
    theirs = torch.optim.AdamW(plain.parameters(), lr=0.01, fused=True)
    scalers = [torch.amp.GradScaler("cuda", init_scale=256.0) for _ in range(2)]
    inputs = INPUTS.to(device)
    for k in range(6):
        for net, optimizer, scaler in zip((model, plain), (ours, theirs), scalers, strict=True):
            scaled_step(net, optimizer, scaler, inputs, k == poisoned)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=5e-6, atol=5e-7)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert ours.skipped.item() == (poisoned is not None)


@pytest.mark.row("P-O-06")
def test_the_scalers_step_does_not_synchronize(device):
    model = nn.Linear(3, 4).to(device)
    optimizer = fv.optim.AdamW(fv.VarStore.from_module(model), max_norm=1.0)
    scaler = torch.amp.GradScaler("cuda")
    inputs = INPUTS.to(device)
    scaled_step(model, optimizer, scaler, inputs, False)
    optimizer.zero_grad()
    scaler.scale(model(inputs).square().sum()).backward()
    before = model.weight.detach().clone()
    with cuda_raises():
        scaler.step(optimizer)
    assert not torch.equal(model.weight, before)


# What torch says of weights that are not in a buffer of cuDNN's: it compacts them at every call.
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk:UserWarning")
@pytest.mark.row("P-X-07")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_train_or_say_what_to_call(kind, device):
    """cuDNN's flatten_parameters moves weights into a buffer of its own: noticed, and taken in by rebind."""
    torch.manual_seed(0)
    model = kind(3, 4, num_layers=2).to(device)
    plain = copy.deepcopy(model)
    store = fv.VarStore.from_module(model)
    ours, theirs = fv.optim.SGD(store, lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    inputs = INPUTS.to(device)
    for _ in range(3):
        for net, optimizer in ((model, ours), (plain, theirs)):
            optimizer.zero_grad()
            net(inputs)[0].square().sum().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    places = [param.data_ptr() for param in model.parameters()]
    model.flatten_parameters()
    if places != [param.data_ptr() for param in model.parameters()]:
        with pytest.raises(fv.AliasError, match=r"store\.rebind\(\)"):
            ours.step()
        assert store.rebind()
    store.check_aliases()
    model(inputs)[0].square().sum().backward()
    ours.step()


@pytest.mark.row("P-A-12")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_variables_are_storages_of_their_own(dtype, device):
    """In the buffer, without a copy, and alive as long as any of them is."""
    model = nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 7)).to(device, dtype)
    store = fv.VarStore.from_module(model)
    flat = store.values
    allocated = torch.cuda.memory_allocated(device)
    assert allocated < 1.1 * flat.nbytes + 2**20
    for variable in store.variables().values():
        storage = variable.param.untyped_storage()
        assert storage.nbytes() == variable.spec.numel * dtype.itemsize
        assert storage.data_ptr() == flat.data_ptr() + variable.span.offset * dtype.itemsize
    bias = model[1].bias.detach()
    expected = bias.clone()
    del model, store, flat, variable, storage
    junk = torch.full((200_000,), 9.0, device=device)
    assert torch.equal(bias, expected)
    assert junk.device == device
