"""torch.compile of an adopted model: no graph of its own breaks, and steps are seen by the compiled code."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import flatvars as fv
from tests.parity.pairs import MODES, Pair, assert_close
from tests.support.models import Chain

INDUCTOR = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor on the CPU needs g++")
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=[INDUCTOR, pytest.mark.slow])]
X = torch.linspace(-1.0, 1.0, 8).view(2, 4)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


# Inductor's own modules deprecate each other.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.row("P-X-06")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_model_trains_as_with_torch(backend: str, mode: str) -> None:
    pair = Pair.of(Chain(), "adamw", mode)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(pair.ours, backend=counter, fullgraph=True)
    for _ in range(4):
        pair.zero_grad()
        compiled(X).square().sum().backward()
        pair.theirs(X).square().sum().backward()
        pair.step()
    for ours, theirs in zip(pair.ours.parameters(), pair.theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    pair.store.check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.row("P-X-06", "P-R-09")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_of_a_compiled_model(backend: str, mode: str, tmp_path: Path) -> None:
    pair = Pair.of(nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2)), "adamw", mode)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(pair.ours, backend=counter, fullgraph=True)
    batches = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0))
    for batch in batches:
        pair.zero_grad()
        compiled(batch).square().sum().backward()
        pair.theirs(batch).square().sum().backward()
        pair.step()
    assert counter.frame_count == 1
    for name, value in pair.theirs.state_dict().items():
        torch.testing.assert_close(pair.ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(pair.store[name].value, pair.ours.state_dict()[name])
    pair.store.save(tmp_path / "file.safetensors")
    compiled(batches[0])
    pair.store.load(tmp_path / "file.safetensors")
    assert pair.ours[1].num_batches_tracked == 3
    pair.store.check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.row("P-X-06")
def test_what_moves_the_variables_is_seen() -> None:
    """The store grew, so every Parameter has another address."""
    net = Chain()
    store = fv.VarStore.from_module(net)
    compiled = torch.compile(net, backend="aot_eager")
    compiled(X)
    store.add("later", torch.ones(70_000))
    store.values.fill_(0.5)
    assert torch.equal(compiled(X), net(X))
    store.double()
    assert torch.equal(compiled(X.double()), net(X.double()))


@pytest.mark.filterwarnings("ignore")
def test_a_train_step_that_is_compiled_from_outside() -> None:
    """The step launches kernels from tables on the host: dynamo breaks the graph there, and results are the same."""
    pair = Pair.of(Chain(), "adamw", max_norm=0.5)

    @torch.compile(backend="aot_eager")
    def loss(module: nn.Module) -> Any:
        return module(X).square().sum()

    def train(module: nn.Module, opt: Any) -> None:
        opt.zero_grad()
        loss(module).backward()
        if module is pair.theirs:
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        opt.step()

    for _ in range(3):
        train(pair.ours, pair.opt)
        train(pair.theirs, pair.ref)
    pair.assert_values_close()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_activation_checkpointing(mode: str, reentrant: bool) -> None:
    pair = Pair.of(Chain(), "adamw", mode)
    for _ in range(3):
        pair.zero_grad()
        for module in (pair.ours, pair.theirs):
            out = X.clone().requires_grad_()
            for layer in module.layers:
                out = checkpoint(layer, out, use_reentrant=reentrant)
            out.square().sum().backward()
        pair.step()
    pair.assert_values_close()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, in its jvp
@pytest.mark.row("P-G-14")
def test_functional_call_and_torch_func() -> None:
    """With other values than the store's; gradients come back and nothing is left in `.grad`."""
    net = Chain()
    plain = copy.deepcopy(net)
    store = fv.VarStore.from_module(net)
    vector = store.ravel()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return functional_call(net, store.unravel(flat), (X,)).square().sum()

    def direct(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(net, values, (X,)).square().sum()

    plain(X).square().sum().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters()])
    assert_close(torch.func.grad(loss)(vector), expected, "gradient of the vector")
    by_name = torch.func.grad(direct)({name: p.detach() for name, p in net.named_parameters()})
    assert_close(torch.cat([g.reshape(-1) for g in by_name.values()]), expected, "gradients by name")
    assert_close(torch.func.jvp(loss, (vector,), (torch.ones_like(vector),))[1], expected.sum(), "derivative")
    each = torch.func.vmap(
        torch.func.grad(lambda values, x: functional_call(net, values, (x,)).square().sum()), (None, 0)
    )
    per_sample = each({name: p.detach() for name, p in net.named_parameters()}, X)
    assert_close(torch.cat([g.sum(0).reshape(-1) for g in per_sample.values()]), expected, "gradients of samples")
    assert store.gradient_names() == []
    store.accumulate(by_name)
    assert_close(torch.cat([store[name].grad.reshape(-1) for name in store]), expected, "accumulated")
