"""1 - beta^t in float32 against expm1 in double, for steps up to a million."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from flatvars.kernels.rules.bias import bias_correction
from flatvars.kernels.triton.compile import twin
from tests.support.tolerances import BIAS_ULP, TOLERANCES

STEPS = 10**6
BLOCK = 65_536
BETAS = [0.0, 0.5, 0.9, 0.999, 0.99999]
compiled_correction = twin(bias_correction)


@pytest.fixture(autouse=True)
def backend():
    """In Triton; that the other compiler's bits are the same is shown in test_words.py."""


@triton.jit
def bias_kernel(steps_ptr, log_beta_ptr, out_ptr, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offset, compiled_correction(tl.load(steps_ptr + offset), tl.load(log_beta_ptr)))


def log(beta):
    return math.log(beta) if beta else -math.inf


def corrections(beta, dtype, device):
    """Of every step from 1, [STEPS] in double; and the truth."""
    blocks = triton.cdiv(STEPS, BLOCK)
    steps = torch.arange(1, blocks * BLOCK + 1, dtype=dtype, device=device)
    log_beta = torch.tensor(log(beta), dtype=dtype, device=device)
    out = torch.empty_like(steps)
    bias_kernel[(blocks,)](steps, log_beta, out, BLOCK=BLOCK)
    return out[:STEPS].cpu(), truth(beta)


def truth(beta):
    return torch.from_numpy(-np.expm1(np.arange(1, STEPS + 1) * log(beta)))


@pytest.mark.parametrize("beta", BETAS)
def test_float32(beta, device):
    actual, expected = corrections(beta, torch.float32, device)
    rounded = expected.float()
    ulp = (torch.nextafter(rounded, torch.tensor(math.inf)) - rounded).double()
    worst = ((actual.double() - expected).abs() / ulp).max().item()
    assert worst <= BIAS_ULP


@pytest.mark.parametrize("beta", BETAS)
def test_float64(beta, device):
    actual, expected = corrections(beta, torch.float64, device)
    torch.testing.assert_close(actual, expected, rtol=TOLERANCES[torch.float64].relative, atol=0)


def test_the_naive_form_would_fail():
    """1 - pow(beta, step) in float32 loses most of its digits where beta is near 1."""
    naive = 1.0 - torch.tensor(0.999) ** torch.arange(1, 11)
    expected = truth(0.999)[:10]
    assert ((naive.double() - expected).abs() / expected).max() > 1e-5


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("step", [1, 2, 500, 10**6])
def test_as_it_is_written(beta, step):
    """A device function is plain Python as well."""
    actual = bias_correction(np.float64(step), np.float64(log(beta)))
    assert actual == pytest.approx(truth(beta)[step - 1].item(), rel=TOLERANCES[torch.float64].relative)


def test_the_truth_is_that_of_math():
    assert truth(0.999)[0].item() == pytest.approx(-math.expm1(math.log(0.999)), rel=1e-15)
