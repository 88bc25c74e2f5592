"""`values="corrected"`: 16 bits of a number to torch, 24 to all others, wherever values are read and written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatvars as fv
from flatvars.kernels.formats import CORRECTED

GOLDEN = """1.0 3F80 0
-1.0 BF80 0
1.00390625 3F80 127
1.01171875 3F82 -127
3.14159274 4049 16
-0.1 BDCD 51
0.333333343 3EAB -85
0.001 3A83 18
1e-40 0001 23
65519.0 4780 -8
0.0 0000 0
-0.0 8000 0
inf 7F80 0
-inf FF80 0
nan 7FC0 0"""


def floats(exponent: int, step: int) -> torch.Tensor:
    """Some of the float32 numbers of an exponent, and their negatives."""
    words = np.arange(exponent << 23, exponent + 1 << 23, step, dtype=np.uint32)
    return torch.from_numpy(np.concatenate([words, words | np.uint32(1 << 31)]).view(np.float32))


def corrected(module: nn.Module) -> Any:
    return fv.VarStore.from_module(module, dtype=torch.bfloat16, values="corrected")


def test_golden_words() -> None:
    rows = [line.split() for line in GOLDEN.splitlines()]
    values, codes, _ = CORRECTED.encode(torch.tensor([float(row[0]) for row in rows]))
    assert [f"{word & 0xFFFF:04X}" for word in values.view(torch.int16).tolist()] == [row[1] for row in rows]
    assert codes.tolist() == [int(row[2]) for row in rows]


@pytest.mark.parametrize("exponent", [0, 1, 2, 127, 254])
def test_errors_are_small_and_what_was_decoded_comes_back(exponent: int) -> None:
    """What torch sees is what it would round the stored number to; subnormals have an absolute bound."""
    numbers = floats(exponent, 37)
    parts = CORRECTED.encode(numbers)
    decoded = CORRECTED.decode(parts)
    assert all(map(torch.equal, CORRECTED.encode(decoded), parts))
    finite = decoded.isfinite()
    assert torch.equal(finite, numbers.abs() <= 3.3961775e38)
    assert torch.equal(decoded.bfloat16(), parts[0])
    error = (decoded.double() - numbers.double()).abs()[finite]
    bound = 1.541e-5 * numbers.double().abs()[finite]
    assert bool((error <= (bound if exponent else 129 * 2.0**-149)).all())


def test_training_is_near_that_of_float32_and_not_that_of_bfloat16() -> None:
    """Steps of a hundredth of bfloat16's last bit, and of some of the codes'."""
    found = {}
    for name in ("float32", "corrected", "bfloat16"):
        values: Any = name if name == "corrected" else None
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        store = fv.VarStore(dtype=dtype, values=values)
        weight = store.add("weight", torch.linspace(1.0, 2.0, 300).bfloat16().to(dtype))
        optimizer = fv.optim.SGD(store, lr=2.0**-13)
        for _ in range(100):
            weight.grad = torch.ones(300, dtype=dtype)
            optimizer.step()
        found[name] = store.float32("weight")
    assert (found["corrected"] - found["float32"]).abs().max() < 2e-3
    assert (found["bfloat16"] - found["float32"]).abs().max() > 1e-2


def test_what_is_written_is_read() -> None:
    """By `store.write` within the bound; into the Parameter, in a unit of its own, to the bit, zeros too."""
    module = nn.Linear(128, 10)
    store = corrected(module)
    given = torch.randn(10, 128)
    store.write("weight", given)
    torch.testing.assert_close(store.float32("weight"), given, rtol=1.541e-5, atol=0.0)
    stored = store.float32("weight")
    with torch.no_grad():
        module.weight[3] = 0.0
        module.weight[4] *= 3.0
    expected = torch.cat([stored[:3], module.weight[3:5].float(), stored[5:]])
    assert torch.equal(store.float32("weight"), expected)
    module.weight.grad = torch.zeros_like(module.weight)
    fv.optim.SGD(store, lr=0.1).step()
    assert torch.equal(store.float32("weight"), expected)


def test_bytes_of_a_parameter() -> None:
    """Values and states of AdamW, beside the gradient: states in 8 bits, and in 8 and 4."""
    for state_format, expected in (("root8", 5 + 3 / 32), ({"exp_avg": "root8", "exp_avg_sq": "log4"}, 4.5 + 3 / 32)):
        store = fv.VarStore(dtype=torch.bfloat16, values="corrected")
        weight = store.add("weight", torch.zeros(128, 1024, dtype=torch.bfloat16))
        optimizer = fv.optim.AdamW(store, state_format=state_format)
        weight.grad = torch.ones(128, 1024, dtype=torch.bfloat16)
        optimizer.step()
        assert store.registry.streams.nbytes == expected * 128 * 1024
