"""The pointer table: uploaded when an address changed, and only then."""

from __future__ import annotations

import weakref

import pytest
import torch

from flatvars.errors import GradientError
from flatvars.kernels import addresses, plan
from flatvars.kernels.triton.tiles import DTYPES
from tests.support.rig import Rig

SHAPES = [(20,), (3, 5), (0,), (40,)]


@pytest.fixture
def rig(device):
    return Rig(SHAPES, device=device)


def test_no_upload_while_addresses_repeat(rig):
    grads = rig.random_grads()
    for _ in range(4):
        rig.plan.scattered(grads)
        for grad in grads:
            grad.mul_(2.0)
    assert rig.plan.addresses.uploads == 1


def test_upload_when_one_address_changed(rig):
    grads = rig.random_grads()
    rig.plan.scattered(grads)
    grads[1] = grads[1].clone()
    rig.plan.scattered(grads)
    assert rig.plan.addresses.uploads == 2
    assert rig.plan.addresses.table[1, 0].item() == grads[1].data_ptr()


def test_upload_when_a_gradient_is_gone(rig):
    grads = rig.random_grads()
    rig.plan.scattered(grads)
    sources = rig.plan.scattered([grads[0], None, grads[2], grads[3]])
    assert rig.plan.addresses.uploads == 2
    assert sources.table[:, 0].ne(0).tolist() == [True, False, True, True]


def test_upload_when_only_the_dtype_changed(rig):
    grads = rig.random_grads()
    rig.plan.scattered(grads)
    grads[3] = grads[3].view(torch.bfloat16)[:40]
    sources = rig.plan.scattered(grads)
    assert rig.plan.addresses.uploads == 2
    assert sources.dtype is None
    assert sources.table[:, 1].tolist() == [0, 0, 0, 1]


def test_another_look_at_the_same_address_is_noticed(device):
    """An allocator gives the same memory to a gradient in another order: its strides are read every time."""
    rig = Rig([(3, 4)], device=device)
    memory = torch.arange(12.0, device=device)
    assert rig.plan.scattered([memory.view(3, 4)]).table[0, 0].item() == memory.data_ptr()
    assert rig.plan.scattered([memory.view(4, 3).t()]).table[0, 0].item() != memory.data_ptr()
    assert rig.plan.scattered([memory.view(3, 4)]).table[0, 0].item() == memory.data_ptr()
    with pytest.raises(GradientError, match=r"shape \(2, 4\)"):
        rig.plan.scattered([memory[:8].view(2, 4)])
    with pytest.raises(GradientError, match=r"int32"):
        rig.plan.scattered([memory.view(torch.int32).view(3, 4)])
    assert rig.plan.addresses.uploads == 3


def test_from_the_stream_and_back(rig):
    grads = rig.random_grads()
    rig.plan.scattered(grads)
    for touched in ([True] * 4, [True] * 4, [True, False, True, True]):
        rig.plan.gathered(rig.grads.stream, touched)
    assert rig.plan.addresses.uploads == 3
    base = rig.grads.stream.data_ptr()
    expected = [base + 4 * start for start in rig.segments.starts]
    assert rig.plan.addresses.table[:, 0].tolist() == [expected[0], 0, *expected[2:]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_dtype_is_compiled_in(rig, dtype):
    grads = rig.random_grads(dtype)
    assert rig.plan.scattered(grads).dtype == dtype


def test_copies_live_until_the_next_launch(rig):
    """A transposed gradient is copied: the kernel that reads the copy runs after `scattered` returned."""
    grads = rig.random_grads()
    transposed = torch.randn(5, 3, device=rig.device).t()
    sources = rig.plan.scattered([grads[0], transposed, *grads[2:]])
    assert any(copy.data_ptr() == sources.table[1, 0].item() for copy in rig.plan.addresses._kept)


def test_nothing_at_all(rig):
    sources = rig.plan.scattered([None] * 4)
    assert sources.table.count_nonzero() == 0


def test_a_capture_copies_what_is_there_already(rig, monkeypatch):
    """Other steps may fill the table between replays: each replay must put its own addresses back."""
    grads = rig.random_grads()
    rig.plan.scattered(grads)
    table = rig.plan.addresses
    table._spares.append(torch.empty(table.table.shape, dtype=torch.int64))
    monkeypatch.setattr(addresses, "is_capturing", lambda _: True)
    rig.plan.scattered(grads)
    monkeypatch.undo()
    assert table.uploads == 2
    rig.plan.scattered(grads)  # a replay may have run since
    assert table.uploads == 3


def test_what_a_capture_reads_outlives_the_plan(rig, monkeypatch):
    """A replay goes on reading tables that the next plan knows nothing of."""
    grads = rig.random_grads()
    rig.plan.norm_(rig.plan.scattered(grads))
    rig.plan.addresses._spares.append(torch.empty(rig.plan.addresses.table.shape, dtype=torch.int64))
    monkeypatch.setattr(plan, "_CAPTURED", set())
    monkeypatch.setattr(addresses, "is_capturing", lambda _: True)
    monkeypatch.setattr(plan, "is_capturing", lambda _: True)
    rig.plan.norm_(rig.plan.scattered(grads))
    kept = rig.plan.addresses.table.data_ptr()
    del rig.plan
    assert [captured.addresses.table.data_ptr() for captured in plan._CAPTURED] == [kept]


def test_a_plan_that_no_graph_captured_goes_with_its_owner(rig):
    rig.plan.norm_(rig.plan.scattered(rig.random_grads()))
    reference = weakref.ref(rig.plan)
    del rig.plan
    assert reference() is None
