"""Muon by both compilers: how many launches a step is, and what skips, scales and masks make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.backend import use_backend
from tests.support.launches import count_launches, count_operators

LAYERS = 2
SHAPES = {"c_attn": (48, 16), "attn_proj": (16, 16), "c_fc": (64, 16), "mlp_proj": (16, 64)}


def small_gpt(device: torch.device) -> tuple[fv.VarStore, nn.Module]:
    """The matrices of GPT-2 small, two layers of a 48th of its width; a vector and an embedding for AdamW."""
    module = nn.Module()
    made = torch.Generator().manual_seed(2)
    for i in range(LAYERS):
        layer = nn.Module()
        for name, shape in SHAPES.items():
            layer.register_parameter(name, nn.Parameter(torch.randn(shape, generator=made).to(device)))
        layer.register_parameter("ln", nn.Parameter(torch.ones(16, device=device)))
        module.add_module(f"h{i}", layer)
    module.wte = nn.Embedding(40, 16, _weight=torch.randn(40, 16, generator=made).to(device))
    for param in module.parameters():
        param.grad = torch.randn(param.shape, generator=made).to(device)
    return fv.VarStore.from_module(module), module


def test_a_step_of_a_gpt_is_a_few_launches(device, backend):
    """62: a norm for each rule, directions, five iterations of nine products, what is divided by, two updates.

    However many matrices there are of the four shapes; torch.optim.Muon runs 24 operators for each of them.
    """
    store, module = small_gpt(device)
    optimizer = fv.optim.Muon(store, max_norm=1.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4 * LAYERS, LAYERS + 1]
    optimizer.step()
    with count_launches() as launches:
        optimizer.step()
    kernels = 5 if backend == "triton" else 0
    assert len(launches.kernels) == kernels
    found = {name: launches.operators.count(name) for name in ("bmm", "baddbmm", "linalg_vector_norm", "clamp_", "div")}
    assert found == {"bmm": 20, "baddbmm": 25, "linalg_vector_norm": 4, "clamp_": 4, "div": 4}
    if backend == "triton":  # no other is anything but a view
        assert set(launches.operators) - set(found) == {"split_with_sizes"}
    twin = torch.optim.Muon([p for p in module.parameters() if p.ndim == 2 and p.shape != (40, 16)])
    with count_operators() as operators:
        twin.step()
    matrices = 4 * LAYERS
    assert len(operators) > 20 * matrices
    assert 48 * len(operators) / matrices > 1000 > 15 * (5 + sum(found.values()))  # of GPT-2 small


def test_second_moments_are_19_operators_for_each_shape(device):
    """Of NorMuon: moments read, moved and written, and directions multiplied; however many matrices there are."""
    counts = []
    for kind in (fv.optim.Muon, fv.optim.NorMuon):
        store, _ = small_gpt(device)
        optimizer = kind(store)
        optimizer.step()
        with count_launches() as launches:
            optimizer.step()
        assert not {"cat", "stack", "clone", "copy_"}.intersection(launches.operators)
        counts.append(len(launches.operators))
    assert counts[1] - counts[0] == 19 * len(SHAPES)


def test_nothing_is_stacked_or_copied(device):
    """All that a step allocates is room for one round of products: directions, Gram matrices and polynomials."""
    store, _ = small_gpt(device)
    optimizer = fv.optim.Muon(store)
    optimizer.step()
    with count_launches() as launches:
        optimizer.step()
    assert not {"cat", "stack", "clone", "copy_", "_foreach_copy_"}.intersection(launches.operators)
    (step,) = optimizer._steps.values()
    (round_,) = step.rounds([True] * (4 * LAYERS))
    for batch in round_.batches:
        view = batch.view(step.directions)
        assert view.untyped_storage().data_ptr() == step.directions.untyped_storage().data_ptr()
        assert (batch.count, batch.distance) == (LAYERS, batch.shape[0] * batch.shape[1])


def run(device: torch.device, **options: Any) -> tuple[fv.VarStore, fv.optim.Muon]:
    store, _ = small_gpt(device)
    return store, fv.optim.Muon(store, lr=0.05, **options)


def test_a_skipped_step_moves_nothing(device):
    store, optimizer = run(device, skip_nonfinite=True, max_norm=1.0)
    optimizer.step()
    before = [store.values.clone(), optimizer.states.steps.clone()]
    states = {v.name: {k: x.clone() for k, x in optimizer.state[v.param].items()} for v in optimizer.members()}
    store["h1.c_fc"].param.grad[1, 2] = float("inf")
    optimizer.step()
    assert torch.equal(store.values, before[0])
    assert torch.equal(optimizer.states.steps, before[1])
    assert optimizer.skipped.item() == 1
    for v in optimizer.members():
        assert all(torch.equal(optimizer.state[v.param][k], x) for k, x in states[v.name].items())
    store["h1.c_fc"].param.grad[1, 2] = 0.0
    optimizer.step()
    assert not torch.equal(store.values, before[0])


def test_a_scale_of_the_loss_is_taken_out(device):
    """The direction is free of scale, and the momentum is not."""
    runs = []
    for scale in (1.0, 1024.0):
        store, optimizer = run(device)
        for v in optimizer.members():
            v.param.grad.mul_(scale)
        optimizer.grad_scale = torch.tensor(scale, device=device)
        optimizer.found_inf = torch.tensor(0.0, device=device)
        optimizer.step()
        runs.append((store.values.clone(), optimizer.state[store["h0.c_fc"].param]["momentum_buffer"].clone()))
    assert all(map(torch.equal, *runs))
    optimizer.found_inf = torch.tensor(1.0, device=device)
    optimizer.step()
    assert torch.equal(store.values, runs[1][0])


def test_masked_elements_stay_and_count_as_zero(device):
    """A matrix with masked rows steps as one whose gradient and momentum are zero there."""
    store, optimizer = run(device)
    mask = torch.ones(64, 1, dtype=torch.bool, device=device)
    mask[3:9] = False
    store.set_trainable_mask("h1.c_fc", mask)
    twin_store, twin = run(device, cautious_decay=False)
    first = store["h1.c_fc"].value.clone()
    for _ in range(2):
        store["h1.c_fc"].param.grad[3:9] = float("nan")
        twin_store["h1.c_fc"].param.grad[3:9] = 0.0
        optimizer.step()
        twin.step()
    assert torch.equal(store["h1.c_fc"].value[3:9], first[3:9])
    assert not optimizer.state[store["h1.c_fc"].param]["momentum_buffer"][3:9].any()
    for v in store.registry.variables:
        found, wanted = v.value, twin_store[v.name].value
        if v.name == "h1.c_fc":
            found, wanted = found[mask[:, 0]], wanted[mask[:, 0]]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_both_compilers_write_the_same_bits(device):
    """Products are torch's, whoever compiled what is around them."""
    if device.type != "cpu":
        pytest.skip("a GPU has one backend")
    values = []
    for name in ("triton", "cpu"):
        with use_backend(name):
            store, optimizer = run(device, max_norm=0.5, cautious_decay=True)
            for _ in range(2):
                optimizer.step()
            values.append(
                torch.cat(
                    [store.values, *optimizer.states.streams(torch.float32, ("momentum_buffer",))[0].buffer[None]]
                )
            )
    assert torch.equal(*values)
