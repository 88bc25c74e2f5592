"""The fill kernel of both compilers: the same bits, in every dtype, order and place; nothing else is written."""

from __future__ import annotations

import pytest
import torch

from flatvars.kernels.cpu import fill as cpu_fill
from flatvars.kernels.errors import FlatvarsError
from flatvars.kernels.fills import CONSTANT, DIAGONAL, NORMAL, TRUNCATED, UNIFORM, Draw, Fill
from flatvars.kernels.triton import fill as triton_fill
from flatvars.kernels.triton.launch import TILE
from flatvars.memory.spec import contiguous_stride
from tests.support.memory import Guarded
from tests.support.tolerances import assert_same_bits

DRAWS = {
    "constant": Draw(CONSTANT, (0.25,)),
    "uniform": Draw(UNIFORM, (-1.0, 2.0, 0.99999994)),
    "normal": Draw(NORMAL, (0.5, 2.0)),
    "truncated": Draw(TRUNCATED, (0.25, 0.125, 0.625, 0.0, 1.0, -0.67, 1.15)),
    "diagonal": Draw(DIAGONAL, (5, 3, 1, 4)),
}
RANDOM = ["uniform", "normal", "truncated"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BLOCK = TILE.block
SEED = 2**63 + 5


@pytest.fixture(autouse=True)
def backend():
    """Each test is about both."""


def fill_of(draw, shape, start=0, *, stride=None, key=2**64 - 7, first=0, count=None):
    count = torch.Size(shape).numel() - first if count is None else count
    return Fill(start, shape, stride or contiguous_stride(shape), draw, key, first, count)


def check_fills(fills, numel, device, dtype=torch.float32, seed=SEED):
    """Both backends on guarded streams; returns what they wrote."""
    ours, twin = Guarded(numel, dtype, device), Guarded(numel, dtype, torch.device("cpu"))
    for guarded in (ours, twin):
        guarded.stream.fill_(-7.0)
    triton_fill.fill_(ours.stream, fills, seed)
    cpu_fill.fill(twin.stream, fills, seed)
    ours.assert_intact()
    twin.assert_intact()
    assert_same_bits(ours.stream, twin.stream)
    return ours.stream


@pytest.mark.row("J-15")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DRAWS)
def test_dtypes(name, dtype, device):
    """Random values are made in float32 and rounded last."""
    written = check_fills([fill_of(DRAWS[name], (20, 15))], 304, device, dtype)
    assert bool((written[300:] == -7.0).all())
    single = check_fills([fill_of(DRAWS[name], (20, 15))], 304, device)
    assert_same_bits(written.cpu(), single.cpu().to(dtype))


@pytest.mark.row("J-15")
@pytest.mark.parametrize("numel", [1, 15, 16, 31, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17])
@pytest.mark.parametrize("name", RANDOM)
def test_lengths(name, numel, device):
    """Also of memory that ends with the last element."""
    check_fills([fill_of(DRAWS[name], (numel,))], numel, device)


@pytest.mark.parametrize("start", [0, 16, 1, 8, 33])
@pytest.mark.parametrize("name", DRAWS)
def test_places(name, start, device):
    """Starts that are no multiple of 16 cannot be written at full width."""
    moved = check_fills([fill_of(DRAWS[name], (5, 15), start)], 128, device)
    assert_same_bits(moved[start : start + 75], check_fills([fill_of(DRAWS[name], (5, 15))], 80, device)[:75])
    assert bool((moved[:start] == -7.0).all())
    assert bool((moved[start + 75 :] == -7.0).all())


@pytest.mark.parametrize(
    "stride", [(60, 1, 12, 3), (1, 4, 12, 60), (15, 60, 3, 1)], ids=["last", "reversed", "swapped"]
)
@pytest.mark.parametrize("name", DRAWS)
def test_memory_orders(name, stride, device):
    shape = (4, 3, 5, 4) if stride[0] == 60 else (4, 3, 5, 3) if stride[0] == 1 else (4, 4, 5, 3)
    numel = torch.Size(shape).numel()
    permuted = check_fills([fill_of(DRAWS[name], shape, 16, stride=stride)], 256, device)
    plain = check_fills([fill_of(DRAWS[name], shape, 16)], 256, device)
    assert_same_bits(permuted[16:].as_strided(shape, stride).contiguous(), plain[16 : 16 + numel].view(shape))


def test_memory_orders_beside_plain_variables(device):
    """One launch of both kinds, and of different numbers of axes."""
    fills = [
        fill_of(DRAWS["normal"], (40,), 0, key=1),
        fill_of(DRAWS["normal"], (2, 3, 4), 48, stride=(12, 1, 3), key=2),
        fill_of(DRAWS["uniform"], (2, 3, 2, 2), 80, stride=(1, 2, 6, 12), key=3),
        fill_of(DRAWS["constant"], (3, 5), 112, stride=(1, 3), key=4),
    ]
    check_fills(fills, 128, device)


@pytest.mark.row("J-12")
@pytest.mark.parametrize(("first", "count"), [(0, 50), (16, 50), (13, 50), (2049, 100), (5, 1)])
@pytest.mark.parametrize("name", RANDOM)
def test_stretches(name, first, count, device):
    whole = check_fills([fill_of(DRAWS[name], (2200,))], 2208, device)
    part = check_fills([fill_of(DRAWS[name], (2200,), 16, first=first, count=count)], 160, device)
    assert_same_bits(part[16 : 16 + count], whole[first : first + count])
    assert bool((part[:16] == -7.0).all())
    assert bool((part[16 + count :] == -7.0).all())


@pytest.mark.row("J-15")
@pytest.mark.parametrize("first", [2**31, 2**31 + 24, 2**35 + 3, 2**44])
@pytest.mark.parametrize("name", RANDOM)
def test_indices_beyond_32_bits(name, first, device):
    """A stretch far inside a variable that no memory holds; a wrapped index would repeat an early stretch."""
    far = check_fills([fill_of(DRAWS[name], (2**45,), first=first, count=40)], 48, device)
    wrapped = check_fills([fill_of(DRAWS[name], (2**45,), first=first % 2**31, count=40)], 48, device)
    assert not torch.equal(far[:40], wrapped[:40])


@pytest.mark.parametrize("seed", [0, 1, 16, 2**31, 2**32, 2**63, 2**64 - 1])
def test_seeds(seed, device):
    check_fills([fill_of(DRAWS["uniform"], (33,))], 48, device, seed=seed)


def test_eighty_variables_of_all_kinds_are_one_launch(device):
    draws = list(DRAWS.values())
    fills = [fill_of(draws[i % 5], (i % 7 + 1, 5, 3), 128 * i, key=i) for i in range(20)]
    check_fills(fills, 128 * 20, device)


def test_a_diagonal_beyond_its_columns_is_zero(device):
    """eye of a tall matrix, dirac of more outputs than inputs."""
    tall = check_fills([fill_of(Draw(DIAGONAL, (3, 1, 0, 8)), (8, 3))], 32, device)
    assert tall[:24].view(8, 3).cpu().tolist() == torch.eye(8, 3).tolist()


@pytest.mark.row("T-I-01")
def test_constants_keep_every_bit_of_float64(device):
    written = check_fills([fill_of(Draw(CONSTANT, (0.1,)), (20,))], 32, device, torch.float64)
    assert written[:20].tolist() == [0.1] * 20


def test_other_dtypes_are_refused(device):
    stream = torch.zeros(16, dtype=torch.int32, device=device)
    with pytest.raises(FlatvarsError, match="the fill kernel writes torch"):
        triton_fill.fill_(stream, [fill_of(DRAWS["normal"], (16,))], 0)
    with pytest.raises(FlatvarsError, match=r"float64; this stream is torch\.int32"):
        cpu_fill.fill(stream.cpu(), [fill_of(DRAWS["normal"], (16,))], 0)
