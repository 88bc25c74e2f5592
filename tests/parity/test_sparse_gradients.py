"""Sparse gradients of embeddings: the same as torch's dense ones, row by row and step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from .pairs import MODES, NORM_TOLERANCE, Pair, assert_close

BATCHES = [torch.tensor([3, 3, 0]), torch.tensor([[5, 3], [3, 9]]), torch.tensor([0]), torch.tensor([1, 9, 1])]


def sparse_pair(optimizer: str | None, mode: str, dtype: torch.dtype = torch.float32) -> Pair:
    """Ours has sparse gradients, the twin dense ones."""
    pair = Pair.of(nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 3)).to(dtype), optimizer, mode)
    pair.ours[0].sparse = True
    return pair


def losses(pair: Pair, ids: Tensor) -> None:
    pair.both(lambda net: net(ids).square().sum())


@pytest.mark.row("P-G-12")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["sgd-dampening", "adam-decay", "adamw-amsgrad", "lion"])
def test_steps_follow_torch_with_dense_gradients(optimizer: str, mode: str) -> None:
    """A row without a gradient has a gradient of zero: it decays and its moments fade."""
    pair = sparse_pair(optimizer, mode)
    for ids in BATCHES:
        pair.zero_grad()
        losses(pair, ids)
        pair.step()
    pair.assert_values_close()
    pair.assert_states_close()


@pytest.mark.parametrize("mode", MODES)
def test_two_backward_passes_add_up(mode: str) -> None:
    pair = sparse_pair("adamw", mode)
    for ids in BATCHES:
        losses(pair, ids)
    pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_not_coalesced(mode: str) -> None:
    pair = sparse_pair("sgd", mode)
    indices, rows = torch.tensor([[2, 7, 2]]), torch.randn(3, 6)
    grad = torch.sparse_coo_tensor(indices, rows, (11, 6), check_invariants=True)
    pair.ours[0].weight.grad = grad
    pair.theirs[0].weight.grad = grad.to_dense()
    pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_norm_clipping_and_the_flat_stream_see_dense_numbers(mode: str) -> None:
    pair = sparse_pair(None, mode)
    losses(pair, BATCHES[1])
    expected = nn.utils.clip_grad_norm_(pair.theirs.parameters(), 0.5)
    torch.testing.assert_close(pair.store.grad_norm(), expected, rtol=NORM_TOLERANCE, atol=0.0)
    norm = pair.store.norms()["0.weight"][1]
    torch.testing.assert_close(pair.store.clip_grad_norm_(0.5), expected, rtol=NORM_TOLERANCE, atol=0.0)
    assert_close(pair.store["0.weight"].grad, pair.theirs[0].weight.grad, "gradient")
    clipped = pair.theirs[0].weight.grad.norm()
    torch.testing.assert_close(norm * 0.5 / expected, clipped, rtol=1e-5, atol=0.0)


def test_micro_batches_accumulate() -> None:
    pair = sparse_pair("adamw", "gather")
    for ids in BATCHES:
        pair.ours(ids).square().sum().backward()
        pair.store.accumulate(scale=1 / len(BATCHES))
        (pair.theirs(ids).square().sum() / len(BATCHES)).backward()
    assert pair.ours[0].weight.grad is None
    pair.step()
    pair.assert_values_close()


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_rows(mode: str) -> None:
    """One use of each row: its gradient is the same number in both, and one step rounds once in both."""
    pair = sparse_pair("sgd", mode, torch.bfloat16)
    losses(pair, torch.tensor([1, 4]))
    pair.step()
    assert torch.equal(pair.ours[0].weight.detach(), pair.theirs[0].weight.detach())


@pytest.mark.parametrize("mode", MODES)
def test_an_embedding_bag(mode: str) -> None:
    pair = Pair.of(nn.EmbeddingBag(11, 6, mode="sum"), "adamw", mode)
    pair.ours.sparse = True
    for _ in range(3):
        pair.zero_grad()
        pair.both(lambda bag: bag(torch.tensor([[1, 2, 2], [4, 1, 9]])).square().sum())
        pair.step()
    pair.assert_values_close()
