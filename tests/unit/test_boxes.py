"""Runs of a variable's memory as boxes, and pieces of tensors that hold one run."""

from __future__ import annotations

import itertools

import pytest
import torch

from flatvars.errors import FlatvarsError
from flatvars.memory.boxes import boxes_of, strides_of
from flatvars.memory.piece import Piece, piece_of


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (2, 1, 3, 2), (7, 1)])
def test_boxes_are_the_run_in_any_memory_order(shape: tuple[int, ...]) -> None:
    for order in itertools.permutations(range(len(shape))):
        back = [order.index(axis) for axis in range(len(shape))]
        stride = torch.empty([shape[axis] for axis in order]).permute(back).stride()
        flat = torch.arange(torch.Size(shape).numel())
        whole = flat.as_strided(shape, stride)
        for first, stop in itertools.combinations(range(len(flat) + 1), 2):
            boxes = boxes_of(first, stop, shape, stride)
            assert len(boxes) <= max(2 * len(shape) - 1, 1)
            seen: list[int] = []
            for box in boxes:
                part = whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]
                local = flat[box.start : box.start + box.numel].as_strided(
                    box.sizes, strides_of(box, stride), box.start
                )
                assert torch.equal(part, local)
                seen += part.reshape(-1).tolist()
            assert sorted(seen) == list(range(first, stop))


def test_a_piece_is_copied_and_filled_where_it_lies() -> None:
    whole = torch.arange(20.0).reshape(4, 5)
    local = torch.zeros(9)
    piece = piece_of(local, 3, (4, 5), (5, 1))
    assert isinstance(piece, Piece)
    assert tuple(piece.shape) == (4, 5)
    piece.copy_(whole)
    assert local.tolist() == list(range(3, 12))
    copy = piece.clone()
    copy.zero_()
    assert local.tolist() == list(range(3, 12))
    copy.copy_(piece)
    assert torch.equal(copy.local, local)
    smaller = piece_of(torch.zeros(2), 4, (4, 5), (5, 1))
    smaller.copy_(piece)
    assert smaller.local.tolist() == [4.0, 5.0]


def test_a_piece_says_what_it_cannot_do() -> None:
    piece = piece_of(torch.zeros(9), 3, (4, 5), (5, 1))
    with pytest.raises(NotImplementedError, match=r"elements 3 to 12 of 20 .*shared out over ranks"):
        piece.sum()
    with pytest.raises(FlatvarsError, match="holds elements 3 to 12"):
        piece.copy_(piece_of(torch.zeros(2), 4, (4, 5), (5, 1)))
    with pytest.raises(FlatvarsError, match="was given one of shape"):
        piece.copy_(torch.zeros(5, 4))
