"""Initializers that are not random alone, beside torch.nn.init's: constants, eye, dirac, sparse, orthogonal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import flatvars as fv
from flatvars.init import Initializer
from tests.support.tolerances import assert_same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def made(initializer: Initializer, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return fv.init.tensor(initializer, shape, "w", dtype=dtype, seed=seed)


@pytest.mark.row("T-I-01")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0, 1, 0.5, 42, 0.1, -0.0, 1.0039063, math.inf, math.nan])
def test_constants_are_exact(value: float, dtype: torch.dtype) -> None:
    """As torch rounds them: once, to the variable's own dtype."""
    assert_same_bits(made(fv.init.constant(value), (5, 3), dtype), torch.full((5, 3), value, dtype=dtype))


@pytest.mark.row("T-I-01")
def test_zeros_and_ones() -> None:
    assert_same_bits(made(fv.init.zeros(), (7,)), torch.zeros(7))
    assert_same_bits(made(fv.init.ones(), ()), torch.ones(()))


@pytest.mark.row("T-I-12")
@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2), (1, 1), (0, 3)], ids=str)
def test_eye(shape: tuple[int, ...]) -> None:
    assert_same_bits(made(fv.init.eye(), shape), nn.init.eye_(torch.empty(shape)))


@pytest.mark.row("T-I-12")
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 3, 3), (6, 2, 4), (6, 8, 3, 5), (12, 3, 1, 2, 3)], ids=str)
def test_dirac(shape: tuple[int, ...], groups: int) -> None:
    assert_same_bits(made(fv.init.dirac(groups), shape), nn.init.dirac_(torch.empty(shape), groups))


@pytest.mark.row("T-I-12")
@pytest.mark.parametrize(("sparsity", "rows"), [(0.0, 10), (0.1, 10), (0.25, 10), (1.0, 10), (0.5, 1)])
def test_sparse(sparsity: float, rows: int) -> None:
    x = made(fv.init.sparse(sparsity, std=0.5), (rows, 400))
    zeros = (x == 0).sum(dim=0)
    assert zeros.tolist() == [math.ceil(sparsity * rows)] * 400
    assert zeros.tolist() == (nn.init.sparse_(torch.empty(rows, 400), sparsity) == 0).sum(dim=0).tolist()
    if 0.0 < sparsity < 1.0 and rows > 1:
        # Every row is chosen about as often; a choice that forgot the column would repeat itself.
        chosen = (x == 0).double().mean(dim=1)
        share = math.ceil(sparsity * rows) / rows
        assert bool(((chosen - share).abs() < 5.0 * math.sqrt(share / 400)).all())
    if sparsity < 1.0 and rows > 1:
        assert x[x != 0].std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.row("T-I-12")
def test_sparse_depends_on_seed_and_keeps_other_values() -> None:
    first, again, other = (made(fv.init.sparse(0.5), (20, 10), seed=seed) for seed in (1, 1, 2))
    assert_same_bits(first, again)
    assert not torch.equal(first == 0, other == 0)
    full = made(fv.init.normal(std=0.01), (20, 10), seed=1)
    assert torch.equal(first[first != 0], full[first != 0])


SHAPES = [(100, 100), (4, 9), (9, 4), (8, 3, 3, 3), (2, 3, 5)]


@pytest.mark.row("T-I-08")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """More than two axes keep their shape, and 16-bit variables work: the QR is in float32."""
    x = made(fv.init.orthogonal(), shape, dtype)
    assert x.shape == shape
    flat = x.double().reshape(shape[0], -1)
    gram = flat @ flat.T if flat.shape[0] < flat.shape[1] else flat.T @ flat
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14}.get(dtype, 2.0 * torch.finfo(dtype).eps)
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.row("T-I-08")
def test_the_norm_of_100_by_100_with_gain_2() -> None:
    assert abs(torch.linalg.vector_norm(made(fv.init.orthogonal(2.0), (100, 100))).item() - 20.0) < 1e-5


@pytest.mark.row("T-I-08")
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=str)
def test_the_sign_is_the_one_that_makes_it_uniform(shape: tuple[int, ...]) -> None:
    """As torch: of the QR of these normals, the one whose R has a positive diagonal."""
    normals = made(fv.init.normal(), shape)
    flat = normals.T if shape[0] < shape[1] else normals
    q = made(fv.init.orthogonal(), shape)
    q = q.T if shape[0] < shape[1] else q
    r = q.T @ flat
    assert bool((r.diagonal() > 0).all())
    torch.testing.assert_close(q @ r, flat)
    assert r.tril(-1).abs().max().item() < 1e-5


@pytest.mark.row("T-I-10")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_its_own(dtype: torch.dtype) -> None:
    """Float32 unless asked for another dtype, and the values of a store's variable of that name."""
    assert fv.init.tensor(fv.init.normal(), (3, 2), "w").dtype == torch.float32
    store = fv.VarStore.from_module(nn.ParameterDict({"w": nn.Parameter(torch.empty(3, 2, dtype=dtype))}), seed=5)
    fv.init.apply_(store, {"w": fv.init.normal()})
    assert_same_bits(store["w"].value, made(fv.init.normal(), (3, 2), dtype, seed=5))
