"""Layouts: alignment, parts, order. Integers only, so properties are checked over many random models."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatvars.errors import SpecError
from flatvars.memory.layout import element_alignment, plan_layout
from flatvars.memory.ranks import Ranks
from flatvars.memory.spec import VarSpec, contiguous_stride, is_dense

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@st.composite
def specs(draw: st.DrawFn) -> list[VarSpec]:
    count = draw(st.integers(0, 30))
    shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
    return [
        VarSpec(f"v{i}", draw(shapes), draw(st.sampled_from(DTYPES)), has_room=draw(st.booleans()))
        for i in range(count)
    ]


@given(specs())
@settings(max_examples=200, deadline=None)
def test_spans_are_aligned_disjoint_and_inside_their_region(model: list[VarSpec]) -> None:
    layout = plan_layout(model)
    assert [span.spec for span in layout.spans] == model
    for region in layout.regions:
        spans = sorted((s for s in layout.spans if s.spec.dtype == region.dtype), key=lambda s: (s.offset, s.stop))
        for left, right in pairwise(spans):
            assert left.stop <= right.offset
        for span in spans:
            assert span.offset * region.dtype.itemsize % 128 == 0
            assert span.offset % 16 == 0
            assert span.stop % 16 == 0
            assert span.stop <= region.numel


@given(specs())
@settings(max_examples=100, deadline=None)
def test_trainable_part_comes_first(model: list[VarSpec]) -> None:
    layout = plan_layout(model)
    for span in layout.spans:
        region = layout.region_of[span.spec.dtype]
        if span.spec.has_room:
            assert span.stop <= region.trainable_numel
        else:
            assert span.offset >= region.trainable_numel


@given(specs())
@settings(max_examples=50, deadline=None)
def test_another_alignment_moves_spans_but_keeps_the_specs(model: list[VarSpec]) -> None:
    wide = plan_layout(model, alignment=512)
    assert [span.spec for span in wide.spans] == [span.spec for span in plan_layout(model).spans]
    assert all(span.offset * span.spec.dtype.itemsize % 512 == 0 for span in wide.spans)


def test_offsets_pass_two_to_the_31() -> None:
    layout = plan_layout([VarSpec("big", (2**31 + 5,), torch.bfloat16), VarSpec("next", (3,), torch.bfloat16)])
    assert layout.spans[1].offset > 2**31
    assert layout.regions[0].numel > 2**31 + 5


@pytest.mark.parametrize(
    ("dtype", "elements"),
    [(torch.float64, 16), (torch.float32, 32), (torch.bfloat16, 64), (torch.int64, 16), (torch.bool, 128)],
    ids=str,
)
def test_alignment_is_128_bytes_and_16_elements(dtype: torch.dtype, elements: int) -> None:
    assert element_alignment(dtype) == elements


def test_a_layout_cannot_be_changed() -> None:
    layout = plan_layout([VarSpec("a", (2,), torch.float32)])
    for held, field in ((layout, "spans"), (layout.spans[0], "offset"), (layout.spans[0].spec, "name")):
        with pytest.raises(AttributeError, match=r"cannot assign|can't set"):
            setattr(held, field, 5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (2, 0, 3), (1, 5)], ids=str)
def test_contiguous_stride_is_torchs(shape: tuple[int, ...]) -> None:
    assert contiguous_stride(shape) == torch.empty(shape).stride()


@given(st.lists(st.integers(1, 4), max_size=4).flatmap(lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))))
@settings(max_examples=100, deadline=None)
def test_permuted_tensors_are_dense(case: tuple[list[int], list[int]]) -> None:
    shape, order = case
    tensor = torch.empty([shape[i] for i in order]).permute([order.index(i) for i in range(len(order))])
    assert is_dense(tuple(tensor.shape), tensor.stride())


@pytest.mark.parametrize("tensor", [torch.empty(4, 1).expand(4, 3), torch.empty(6, 4)[:, :2], torch.empty(9)[::2]])
def test_tensors_with_gaps_or_overlaps_are_not_dense(tensor: torch.Tensor) -> None:
    assert not is_dense(tuple(tensor.shape), tensor.stride())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "empty part"),
        ({"name": "a..b"}, "empty part"),
        ({"name": "a", "shape": (-1,)}, "negative length"),
        ({"name": "a", "shape": (4, 4), "stride": (8, 1)}, "not dense"),
        ({"name": "a", "dtype": torch.int64}, "cannot be trained"),
    ],
    ids=["no name", "empty part", "negative", "gaps", "integer"],
)
def test_specs_that_no_store_can_hold(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        VarSpec(**{"shape": (2,), "dtype": torch.float32, **arguments})  # type: ignore[arg-type]


@given(specs(), st.data())
@settings(max_examples=200, deadline=None)
def test_stretches_cover_the_chosen_and_nobody_else(model: list[VarSpec], data: st.DataObject) -> None:
    layout = plan_layout(model)
    trainable = [i for i, span in enumerate(layout.spans) if span.spec.has_room]
    chosen = [i for i in trainable if data.draw(st.booleans())]
    stretches = layout.stretches(chosen)
    for i, span in enumerate(layout.spans):
        covered = [s for s in stretches if s[0] == span.spec.dtype and s[1] <= span.offset and span.stop <= s[2]]
        touched = [
            s
            for s in stretches
            if s[0] == span.spec.dtype and s[1] < span.offset + span.numel and span.offset < s[2] and span.numel
        ]
        assert len(covered) >= 1 if i in chosen else not touched
    if chosen == trainable:
        assert len(stretches) <= len(layout.regions)
    assert all(stop <= layout.region_of[dtype].trainable_numel for dtype, _, stop in stretches)


@given(specs(), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_ranks_have_equal_shares_that_cut_no_unit(model: list[VarSpec], world: int) -> None:
    layout = plan_layout(model, ranks=Ranks(0, world))
    assert [span.spec for span in layout.spans] == model
    for region in layout.regions:
        shares = [layout.share(region.dtype, rank) for rank in range(world)]
        assert shares[0][0] == 0
        assert shares[-1][1] == region.trainable_numel <= region.numel
        assert len({stop - start for start, stop in shares}) == 1
        assert all(left[1] == right[0] and right[0] % 128 == 0 for left, right in pairwise(shares))
        spans = sorted((s for s in layout.spans if s.spec.dtype == region.dtype), key=lambda s: (s.offset, s.stop))
        assert all(left.stop <= right.offset for left, right in pairwise(spans))
        for span in spans:
            assert span.offset % 128 == 0
            assert (
                (span.stop <= region.trainable_numel) if span.spec.has_room else span.offset >= region.trainable_numel
            )
