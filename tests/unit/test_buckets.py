"""Buckets of gradients: what is sent, to whom, in which order; and what a store is told about them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatvars as fv
from flatvars.distributed.buckets import cut_buckets
from flatvars.memory.layout import plan_layout
from flatvars.memory.ranks import GRAIN, Ranks
from flatvars.memory.spec import VarSpec

SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=2).map(tuple), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.data(), st.integers(1, 5), st.integers(1, 3000))
def test_buckets_hold_every_element_once(
    shapes: list[tuple[int, ...]], data: st.DataObject, world: int, limit: int
) -> None:
    dtypes = [data.draw(st.sampled_from((torch.float32, torch.bfloat16))) for _ in shapes]
    specs = [VarSpec(f"v{i}", shape, dtype) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]
    layout = plan_layout(specs, ranks=Ranks(0, world))
    chosen = [i for i in range(len(specs)) if data.draw(st.booleans())]
    buckets = cut_buckets(layout, chosen, dict.fromkeys(dtypes, limit))
    count = {region.dtype: torch.zeros(region.numel, dtype=torch.int64) for region in layout.regions}
    for bucket in buckets:
        first, last = layout.share(bucket.region, bucket.owner)
        assert first <= bucket.start < bucket.stop <= last
        assert bucket.stop - bucket.start <= limit or len(bucket.members) == 1
        count[bucket.region][bucket.start : bucket.stop] += 1
        for k in bucket.members:
            span = layout.spans[chosen[k]]
            assert max(span.offset, bucket.start) < min(span.offset + span.numel, bucket.stop)
    for k, i in enumerate(chosen):
        span = layout.spans[i]
        assert bool((count[span.spec.dtype][span.offset : span.offset + span.numel] == 1).all())
        assert sum(k in bucket.members for bucket in buckets) >= (span.numel > 0)
    rest = [span for i, span in enumerate(layout.spans) if i not in chosen]
    assert all(not bool(count[s.spec.dtype][s.offset : s.offset + s.numel].any()) for s in rest), "nobody wants these"
    places = [(layout.regions.index(layout.region_of[b.region]), b.start) for b in buckets]
    assert places == sorted(places, reverse=True)


def test_neighbors_share_a_bucket_as_long_as_they_fit() -> None:
    specs = [VarSpec(f"v{i}", (GRAIN,), torch.float32) for i in range(8)]
    layout = plan_layout(specs, ranks=Ranks(0, 2))
    buckets = cut_buckets(layout, range(8), {torch.float32: 3 * GRAIN})
    assert [bucket.members for bucket in buckets] == [(7,), (4, 5, 6), (3,), (0, 1, 2)]
    assert [bucket.owner for bucket in buckets] == [1, 1, 0, 0]


def test_a_size_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"bucket_cap_mb=25 .*no mesh= was given"):
        fv.VarStore.from_module(nn.Linear(2, 2), bucket_cap_mb=25)
    for size in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="above 0 is needed"):
            fv.VarStore(mesh=object(), bucket_cap_mb=size)  # type: ignore[arg-type]
    with pytest.raises(fv.FlatvarsError, match=r"mesh= and bucket_cap_mb=25"), fv.VarStore().last_backward():
        pass
