"""Batches: every matrix in one of them, once, as a view of where it lies; and side by side they are few."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatvars.errors import SpecError
from flatvars.memory.batches import Batch, Block, matrix_of, split_block
from flatvars.memory.layout import Layout, plan_layout
from flatvars.memory.spec import VarSpec

DTYPES = (torch.float32, torch.bfloat16)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[VarSpec], list[int]]:
    """Specs, and which of them are chosen."""
    shapes = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=3))
    specs = []
    for i in range(draw(st.integers(1, 14))):
        shape = draw(st.sampled_from(shapes))
        stride = draw(st.sampled_from([(), (1, max(shape[0], 1))]))
        specs.append(VarSpec(f"v{i}", shape, draw(st.sampled_from(DTYPES)), stride, draw(st.booleans())))
    return specs, [i for i in range(len(specs)) if draw(st.booleans())]


def buffers_of(layout: Layout) -> dict[torch.dtype, torch.Tensor]:
    return {region.dtype: torch.arange(region.numel) for region in layout.regions}


def seen(layout: Layout, batches: list[Batch]) -> dict[int, list[torch.Tensor]]:
    """By span, what the batches show of buffers that hold their own positions."""
    buffers, found = buffers_of(layout), {}
    for batch in batches:
        view = batch.view(buffers[batch.dtype])
        assert view.data_ptr() == buffers[batch.dtype].data_ptr() + 8 * batch.offset
        for matrix, index in zip(view, batch.members, strict=True):
            found.setdefault(index, []).append(matrix)
    return found


@given(models(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_matrix_is_seen_once_where_it_lies(model: tuple[list[VarSpec], list[int]], arranged: bool) -> None:
    specs, chosen = model
    layout = plan_layout(specs, side_by_side=chosen if arranged else ())
    buffers = buffers_of(layout)
    found = seen(layout, layout.batches(chosen))
    assert set(found) == {i for i in chosen if specs[i].numel}
    for i, matrices in found.items():
        span = layout.spans[i]
        mine = buffers[span.spec.dtype].as_strided(span.spec.shape, span.spec.stride, span.offset)
        assert len(matrices) == 1
        assert torch.equal(matrices[0], mine)


@given(models())
@settings(max_examples=100, deadline=None)
def test_side_by_side_there_is_one_batch_a_shape(model: tuple[list[VarSpec], list[int]]) -> None:
    specs, chosen = model
    chosen = [i for i in chosen if specs[i].has_room]
    layout = plan_layout(specs, side_by_side=chosen)
    kinds = {(specs[i].dtype, specs[i].shape, specs[i].stride) for i in chosen if specs[i].numel}
    strides = {(specs[i].dtype, specs[i].shape, matrix_of(specs[i]).strides) for i in chosen if specs[i].numel}
    assert len(strides) <= len(layout.batches(chosen)) <= len(kinds)


def test_layers_are_batches_in_creation_order_too() -> None:
    """Equal layers lie at equal distances, whatever lies between their matrices."""
    shapes = [(48, 16), (48,), (16, 16), (16,), (7, 3)] * 5
    layout = plan_layout([VarSpec(f"v{i}", shape, torch.float32) for i, shape in enumerate(shapes)])
    batches = layout.batches([i for i, shape in enumerate(shapes) if len(shape) == 2])
    assert [(batch.shape, batch.count) for batch in batches] == [((48, 16), 5), ((16, 16), 5), ((7, 3), 5)]


def test_a_hole_cuts_a_batch() -> None:
    layout = plan_layout([VarSpec(f"v{i}", (4, 4), torch.float32) for i in range(6)])
    assert [batch.members for batch in layout.batches([0, 1, 3, 4, 5])] == [(0, 1), (3, 4, 5)]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("columns", [16, 5], ids=["no padding", "padding"])
def test_split_matrices_are_batches(axis: int, columns: int) -> None:
    shape = (12, columns) if axis == 0 else (columns, 12)
    layout = plan_layout([VarSpec(f"v{i}", shape, torch.float32) for i in range(4)])
    blocks = [split_block(matrix_of(span.spec), (4, 4, 4), axis) for span in layout.spans]
    batches = layout.batches(range(4), blocks)
    assert len(batches) == (1 if axis == 0 and columns == 16 else 3)
    found = seen(layout, batches)
    buffer = buffers_of(layout)[torch.float32]
    for i, span in enumerate(layout.spans):
        parts = buffer.as_strided(shape, span.spec.stride, span.offset).split(4, axis)
        assert sorted(part[0, 0].item() for part in parts) == sorted(part[0, 0].item() for part in found[i])
        assert all(any(torch.equal(part, seen_one) for seen_one in found[i]) for part in parts)


def test_convolutions_are_matrices_in_memory_order() -> None:
    plain = torch.empty(8, 4, 3, 3)
    last = plain.to(memory_format=torch.channels_last)
    for weight in (plain, last):
        spec = VarSpec("w", tuple(weight.shape), torch.float32, weight.stride())
        assert matrix_of(spec) == Block(0, (8, 36), (36, 1))
    with pytest.raises(SpecError, match="first axis"):
        matrix_of(VarSpec("w", (3, 4, 5), torch.float32, (1, 3, 12)))
    with pytest.raises(SpecError, match="no matrix"):
        matrix_of(VarSpec("w", (3,), torch.float32))


def test_sizes_of_a_split_must_add_up() -> None:
    with pytest.raises(SpecError, match="add up"):
        split_block(Block(0, (12, 4), (4, 1)), (4, 4), 0)


def test_pieces_are_the_batch() -> None:
    batch = Batch(torch.float32, 3, 7, 20, (4, 4), (4, 1), tuple(range(7)))
    pieces = batch.pieces(3)
    assert [piece.count for piece in pieces] == [2, 2, 3]
    buffer = torch.arange(200)
    assert torch.equal(torch.cat([piece.view(buffer) for piece in pieces]), batch.view(buffer))
    assert [i for piece in pieces for i in piece.members] == list(range(7))
