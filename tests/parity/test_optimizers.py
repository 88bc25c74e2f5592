"""Every optimizer against torch.optim: 20 steps, all shapes, all dtypes, both gradient modes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import flatvars as fv
from tests.support.models import MIXTURE, Bag

from .pairs import FLOAT32_SCALARS, FUSED, MODES, OPTIMIZERS, TOLERANCES, Pair, assert_close, assert_no_worse

STEPS = 20


def drop_one(step: int) -> set[str]:
    """A different variable has no gradient in each step, and in the first step two have none."""
    names = list(MIXTURE)
    return {names[step % len(names)]} | ({"matrix", "primes"} if step == 0 else set())


def exact_run(
    pair: Pair, optimizer: str, skip: Callable[[int], set[str]] = lambda step: set()
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Runs the pair and, on the same gradients, a float64 twin with torch.optim."""
    truth = copy.deepcopy(pair.theirs).double()
    exact = OPTIMIZERS[optimizer][1](truth.parameters(), **OPTIMIZERS[optimizer][2])
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        pair.zero_grad()
        pair.backward(generator, skip(step))
        for wide, param in zip(truth.parameters(), pair.theirs.parameters(), strict=True):
            wide.grad = None if param.grad is None else param.grad.double()
        pair.step()
        exact.step()
    return truth, exact


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float32_follows_torch(optimizer: str, mode: str) -> None:
    pair = Pair.of(Bag(MIXTURE), optimizer, mode)
    pair.run(STEPS, skip=drop_one)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float64_follows_torch(optimizer: str) -> None:
    pair = Pair.of(Bag(MIXTURE, [torch.float64]), optimizer)
    pair.run(STEPS, skip=drop_one)
    bound = TOLERANCES[torch.float32] if optimizer in FLOAT32_SCALARS else None
    pair.assert_values_close(bound)
    pair.assert_states_close(bound)


@pytest.mark.parametrize("shape", MIXTURE.values(), ids=MIXTURE)
@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adamw", "adam-amsgrad", "lion-decay"])
def test_a_store_of_one_variable(optimizer: str, shape: tuple[int, ...]) -> None:
    pair = Pair.of(Bag({"only": shape}), optimizer)
    pair.run(5)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("optimizer", ["sgd-nesterov", "adam-decay", "adamw", "adamw-amsgrad"])
def test_torch_for_loop_is_followed_too(optimizer: str) -> None:
    pair = Pair.of(Bag(MIXTURE), optimizer)
    pair.ref = type(pair.ref)(pair.theirs.parameters(), **OPTIMIZERS[optimizer][2], foreach=False)
    pair.run(STEPS, skip=drop_one)
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [(name, torch.bfloat16) for name in OPTIMIZERS]
    + [(name, torch.float16) for name in ("sgd-momentum", "adamw", "adam-amsgrad", "lion")],
    ids=str,
)
def test_low_precision_is_no_worse_than_torch(optimizer: str, dtype: torch.dtype) -> None:
    pair = Pair.of(Bag({k: v for k, v in MIXTURE.items() if k != "matrix"}, [dtype]), optimizer)
    if isinstance(pair.ref, FUSED):
        pair.ref = type(pair.ref)(pair.theirs.parameters(), **OPTIMIZERS[optimizer][2], fused=True)
    truth = exact_run(pair, optimizer)[0]
    assert_no_worse(pair.ours.parameters(), pair.theirs.parameters(), truth.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "adam-amsgrad"])
def test_dtypes_may_be_mixed(optimizer: str, mode: str) -> None:
    pair = Pair.of(Bag(MIXTURE, [torch.float32, torch.float64, torch.bfloat16]), optimizer, mode)
    truth = exact_run(pair, optimizer, drop_one)[0]
    narrow = []
    for (name, ours), theirs in zip(pair.ours.named_parameters(), pair.theirs.parameters(), strict=True):
        assert ours.dtype == theirs.dtype
        if ours.dtype == torch.bfloat16:
            narrow.append((ours, theirs, truth.get_parameter(name)))
        else:
            assert_close(ours.detach(), theirs.detach(), name)
    assert_no_worse(*zip(*narrow, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw", "lion"])
def test_float32_state_of_bfloat16_variables_is_closer_to_the_truth(optimizer: str) -> None:
    """State in float32 costs bytes and must buy precision: the state stream follows the float64 run to 1e-6."""
    module = Bag({"row": (31,), "over_limit": (65_537,)}, [torch.bfloat16])
    pair = Pair.of(module, optimizer, state_dtype=torch.float32)
    exact = exact_run(pair, optimizer)[1]
    for index, state in pair.opt.state_dict()["state"].items():
        for key, value in state.items():
            assert value.dtype == torch.float32
            if key != "step":
                expected = exact.state_dict()["state"][index][key].float()
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["whole", "clipped"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("amsgrad", [False, True], ids=["adamw", "amsgrad"])
def test_a_large_narrow_tensor_is_rounded_once_and_its_gradient_stays(
    amsgrad: bool, dtype: torch.dtype, max_norm: float | None
) -> None:
    """On a CPU torch's own operator steps it, whose scale must not be rounded into the gradients first."""
    generator = torch.Generator().manual_seed(3)
    values, grad = (torch.randn(300, 301, generator=generator).to(dtype) for _ in range(2))
    store = fv.VarStore()
    param = store.add("w", values.clone())
    opt = fv.optim.AdamW(store, lr=0.01, eps=1e-6, amsgrad=amsgrad, max_norm=max_norm)
    exact = torch.nn.Parameter(values.double())
    reference = torch.optim.AdamW([exact], lr=0.01, eps=1e-6, amsgrad=amsgrad)
    param.grad, exact.grad = grad.clone(), grad.double()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_([exact], max_norm)
    opt.step()
    reference.step()
    assert torch.equal(param.grad, grad)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(param.double(), exact, rtol=ulp, atol=1e-6)
    mean = opt.state[param]["exp_avg"].double()
    torch.testing.assert_close(mean, reference.state[exact]["exp_avg"], rtol=ulp, atol=torch.finfo(dtype).tiny)
