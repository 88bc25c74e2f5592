"""Large buffers: zeros on large pages where the system has them, and zeros where it has not."""

from __future__ import annotations

from unittest.mock import patch

import torch

from flatvars.memory import pages

LARGE = 3 * pages.SMALLEST // 4
CPU = torch.device("cpu")


def test_large_pages_are_asked_for_inside_of_a_buffer_alone() -> None:
    asked: list[tuple[int, int]] = []
    with patch.object(pages, "_madvise", lambda: lambda start, length, advice: asked.append((start, length))):
        small = pages.paged_zeros(16, torch.float32, CPU)
        large = pages.paged_zeros(LARGE, torch.float32, CPU)
    assert not small.any()
    assert not large.any()
    if pages._ADVICE is None:
        assert asked == []
        return
    ((start, length),) = asked
    assert start % pages.PAGE == 0
    assert length % pages.PAGE == 0
    assert large.data_ptr() <= start < start + length <= large.data_ptr() + large.nbytes


def test_a_system_that_refuses_or_has_no_such_call() -> None:
    for madvise in (lambda *_: -1, None):
        with patch.object(pages, "_madvise", lambda found=madvise: found):
            buffer = pages.paged_zeros(LARGE, torch.float32, CPU)
        assert buffer.shape == (LARGE,)
        assert not buffer.any()
