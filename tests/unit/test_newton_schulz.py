"""Newton-Schulz iterations on batches: what each set reaches, and that a batch is its matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flatvars.optim.newton_schulz import SETS, NewtonSchulz, newton_schulz_of, orthogonalize_, scratch_numel

KELLER = newton_schulz_of("keller", None, 1e-7, False)


def orthogonal(matrices: Tensor, how: NewtonSchulz = KELLER, gap: int = 0) -> Tensor:
    """Of float32 [count, rows, columns]; they lie `gap` elements apart."""
    count, rows, columns = matrices.shape
    buffer = torch.full((count * (rows * columns + gap),), 7.0, dtype=torch.bfloat16)
    view = buffer.as_strided(matrices.shape, (rows * columns + gap, columns, 1))
    view.copy_(matrices)
    orthogonalize_([view], how, torch.empty(scratch_numel(count, (rows, columns)), dtype=torch.bfloat16))
    assert (buffer.view(count, -1)[:, rows * columns :] == 7.0).all(), "wrote between the matrices"
    return view.float()


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("keller", 0.65, 1.16), ("quintic", 0.95, 1.05), ("polar", 0.83, 1.17), ("deepseekv4", 0.985, 1.015)],
)
@pytest.mark.parametrize("shape", [(64, 256), (256, 64)], ids=["wide", "tall"])
def test_singular_values_come_near_one(name: str, least: float, most: float, shape: tuple[int, int]) -> None:
    found = torch.linalg.svdvals(orthogonal(gaussian(1, *shape), newton_schulz_of(name, None, 1e-7, False)))
    assert least < found.min() <= found.max() < most


@pytest.mark.parametrize("gap", [0, 37])
@pytest.mark.parametrize("shape", [(47, 79), (79, 47), (16, 16)], ids=str)
def test_a_batch_is_its_matrices(shape: tuple[int, int], gap: int) -> None:
    matrices = gaussian(4, *shape)
    together = orthogonal(matrices, gap=gap)
    for one, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, orthogonal(one[None])[0], rtol=2e-2, atol=2e-3)


def test_batches_of_one_small_side_run_together() -> None:
    wide, tall = gaussian(3, 16, 40).bfloat16(), gaussian(2, 64, 16).bfloat16()
    alone = orthogonal(wide.float()), orthogonal(tall.float())
    scratch = torch.empty(scratch_numel(3, (16, 40)) + scratch_numel(2, (64, 16)), dtype=torch.bfloat16)
    orthogonalize_([wide, tall], KELLER, scratch)
    for found, wanted in zip((wide, tall), alone, strict=True):
        torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("steps", [0, 1, 4, 5])
def test_tall_is_transposed_wide(steps: int) -> None:
    how = newton_schulz_of("keller", steps, 1e-7, False)
    matrices = gaussian(2, 24, 60)
    wide, tall = orthogonal(matrices, how), orthogonal(matrices.mT.contiguous(), how)
    torch.testing.assert_close(wide, tall.mT, rtol=2e-2, atol=3e-3)


def test_zeros_stay_zeros_and_leave_their_neighbors() -> None:
    matrices = gaussian(3, 8, 20)
    matrices[1] = 0.0
    found = orthogonal(matrices)
    assert torch.equal(found[1], torch.zeros(8, 20))
    torch.testing.assert_close(found[0], orthogonal(matrices[:1])[0], rtol=2e-2, atol=2e-3)
    matrices[1] = float("nan")
    found = orthogonal(matrices)
    assert found[1].isnan().all()
    assert found[::2].isfinite().all()


def test_rank_one() -> None:
    u, v = gaussian(12, 1), gaussian(1, 30)
    found = orthogonal((u @ v)[None])[0]
    direction = (u / u.norm()) @ (v / v.norm())
    assert 0.65 < (found * direction).sum() < 1.2
    # Beside it, what rounding made of the first product, grown as small singular values do.
    assert found.norm() < 1.5


def test_a_floor_of_the_norm_or_a_summand() -> None:
    small = gaussian(1, 8, 8) * 1e-9
    clamped = orthogonal(small, newton_schulz_of("keller", 0, 1.0, False))
    torch.testing.assert_close(clamped, small.bfloat16().float())
    unit = gaussian(1, 8, 8)
    unit /= unit.norm()
    added = orthogonal(unit, newton_schulz_of("keller", 0, 1.0, True))
    torch.testing.assert_close(added, unit / 2, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("coefficients", "steps", "words"),
    [
        ("kepler", None, "no set of coefficients"),
        ((1.0, 2.0), 5, "exactly 3"),
        ((), 5, "exactly 3"),
        (SETS["polar"], 100, "less than 100"),
        ("keller", -1, "less than 100"),
    ],
)
def test_what_makes_no_sense_is_refused(coefficients: object, steps: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        newton_schulz_of(coefficients, steps, 1e-7, False)


def test_the_last_coefficients_go_on() -> None:
    assert newton_schulz_of("quintic", 7, 1e-7, False).coefficients == SETS["quintic"] + SETS["quintic"][-1:] * 2
    assert newton_schulz_of(SETS["polar"], None, 1e-7, False).coefficients == SETS["polar"]
