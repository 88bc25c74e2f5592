"""The words of rules: one definition, three lives (Triton, Numba, NumPy), the same bits; and accurate."""

from __future__ import annotations

import math
import re

import numba
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from flatvars.kernels import lang
from flatvars.kernels.cpu import compile as compiler
from flatvars.kernels.cpu import saved
from flatvars.kernels.cpu.compile import twin as cpu_twin
from flatvars.kernels.cpu.update import updater
from flatvars.kernels.lang import WORDS, device_function
from flatvars.kernels.rules.bias import bias_correction
from flatvars.kernels.triton.compile import twin as triton_twin
from tests.support.rules import CASES, ONE_EACH
from tests.support.tolerances import assert_same_bits

BLOCK = 4096
DTYPES = [np.float32, np.float64]
ONE_ARGUMENT = [lang.exp, lang.log, lang.sign, lang.absolute, lang.nearest, lang.power_of_two]
TWO_ARGUMENTS = [lang.maximum, lang.minimum, lang.div_rn, lang.power, bias_correction]
SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 1e-38, 88.7, 89.0, -87.4, -103.9, 3e38]


@pytest.fixture(autouse=True)
def backend(device):
    """Each test is about both."""
    if device.type != "cpu":
        pytest.skip("Numba compiles for host memory; tests/gpu compares both devices")


@triton.jit
def apply_kernel(x_ptr, y_ptr, out_ptr, F: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane)
    if COUNT == 1:
        out = F(x)
    else:
        out = F(x, tl.load(y_ptr + lane))
    tl.store(out_ptr + lane, out)


def by_triton(function, x, y, count):
    out = torch.empty(BLOCK, dtype=torch.from_numpy(x).dtype)
    apply_kernel[(1,)](torch.from_numpy(x), torch.from_numpy(y), out, F=triton_twin(function), COUNT=count, BLOCK=BLOCK)
    return out


def by_numba(function, x, y, count):
    compiled = cpu_twin(function, x.dtype.type)
    if count == 1:
        loop = numba.vectorize(lambda a: compiled(a))
        return torch.from_numpy(loop(x))
    loop = numba.vectorize(lambda a, b: compiled(a, b))
    return torch.from_numpy(loop(x, y))


def numbers(dtype, seed):
    generator = np.random.default_rng(seed)
    small = generator.normal(size=BLOCK - 1024 - len(SPECIAL)) * 20
    wide = generator.normal(size=1024) * 2.0 ** generator.uniform(-130, 120, 1024)
    return np.concatenate([SPECIAL, small, wide]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [*ONE_ARGUMENT, *TWO_ARGUMENTS], ids=lambda f: f.__name__)
def test_three_lives_of_the_same_bits(function, dtype):
    count = 1 if function in ONE_ARGUMENT else 2
    x, y = numbers(dtype, 1), np.roll(numbers(dtype, 2), 5)
    if function is lang.nearest:
        x = np.clip(np.nan_to_num(x), -1e6, 1e6).astype(dtype)
    if function is lang.power_of_two:
        x = np.rint(x).astype(dtype)
    plain = torch.from_numpy(np.asarray(function(x) if count == 1 else function(x, y), dtype=dtype))
    for actual in (by_triton(function, x, y, count), by_numba(function, x, y, count)):
        nan = plain.isnan()  # which of its many patterns is up to the processor
        assert torch.equal(actual.isnan(), nan)
        assert_same_bits(actual[~nan], plain[~nan])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "truth"), [(lang.exp, np.exp), (lang.log, np.log)], ids=["exp", "log"])
def test_within_two_ulp(function, truth, dtype):
    wide = np.longdouble if dtype is np.float64 else np.float64
    x = np.concatenate(
        [np.abs(numbers(dtype, 3)), -np.abs(numbers(dtype, 4)), np.linspace(0.5, 2.0, 20_000, dtype=dtype)]
    )
    expected = truth(x.astype(wide))
    rounded = expected.astype(dtype)
    actual = function(x)
    finite = np.isfinite(rounded)
    assert np.array_equal(actual[~finite], rounded[~finite], equal_nan=True)
    error = np.abs(actual[finite].astype(wide) - expected[finite]) / np.spacing(np.abs(rounded[finite]))
    assert error.max() <= 2.0


@pytest.mark.parametrize("name", WORDS)
def test_every_word_is_a_device_function_or_a_primitive(name):
    word = getattr(lang.tl, name)
    assert lang.is_device_function(word) or word in lang.PRIMITIVES


def test_numbers_are_in_the_dtype_of_the_arithmetic():
    """A literal of Python is a double, and a rule would run in double with it; so would one with an integer."""

    @device_function
    def third(x):
        return x * 0.1 + 1

    x = np.float32(0.3)
    assert by_numba(third, np.full(4, x), np.zeros(4), 1).dtype == torch.float32
    assert by_numba(third, np.full(4, x), np.zeros(4), 1)[0].item() == np.float32(x * np.float32(0.1)) + np.float32(1.0)


@pytest.mark.parametrize("name", ONE_EACH)
def test_machine_code_fuses_no_operations(name, monkeypatch):
    """A product added without rounding would be another number; and what runs is made of vectors."""
    rule = CASES[name].rule
    monkeypatch.setattr(saved, "load", lambda _: None)  # what is loaded has no text
    monkeypatch.setattr(compiler, "_natives", {})
    code = updater.__wrapped__(rule, "float32", ("float32",) * len(rule.states), np.float32, False)
    assembly = code.library._library.get_asm_str()
    assert not re.findall(r"\bvf(?:n?m(?:add|sub)|ms|ma)\w*", assembly)
    assert not re.findall(r"\bfn?m(?:add|sub|la|ls)\b", assembly)
    if "xmm" in assembly:
        assert re.findall(r"v?mulps", assembly)


def test_a_twin_is_made_once():
    rule = CASES["adamw"].rule
    assert cpu_twin(rule.function, np.float32) is cpu_twin(rule.function, np.float32)
    assert triton_twin(rule.function) is triton_twin(rule.function)
