"""Snapshots: one copy per stream, saved in the background, rolled back to bit for bit."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import flatvars as fv
from flatvars.checkpoint import SnapshotRing
from flatvars.checkpoint import save as saving
from tests.support.stores import Net, backward, batch

from .resume import CASES, result, start
from .support import assert_values, trained, values


def check_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == b[key].dtype
            bits = [t.detach().reshape(-1).view(torch.uint8) for t in (value, b[key])]
            assert torch.equal(*bits), key
        else:
            assert value == b[key], key


def frozen_result(run: Any) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in result(run).items()}


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("name", list(CASES))
def test_rolled_back_and_repeated_is_the_same_run(name: str) -> None:
    case = CASES[name]
    run = start(case, seed=0)
    half = case.steps // 2
    for i in range(half):
        case.work(run, i)
    snapshot = run.store.snapshot(run.optimizer, run.schedulers or None, {"data": run.generator})
    for i in range(half, case.steps):
        case.work(run, i)
    expected = frozen_result(run)
    run.store.values_of(run.store.regions[0].dtype).fill_(float("nan"))
    for _ in range(2):  # a snapshot is not used up
        run.store.restore(snapshot)
        run.store.check()
        for i in range(half, case.steps):
            case.work(run, i)
        check_equal(frozen_result(run), expected)


def test_a_saved_snapshot_is_what_save_would_have_written(tmp_path: Path) -> None:
    net, store, optimizer = trained()
    backward(net, batch())
    store.accumulate()
    backward(net, batch())
    store.save(tmp_path / "a.safetensors", optimizer, rng=True)
    snapshot = store.snapshot(optimizer, rng=True)
    optimizer.step()
    store.values.zero_()
    snapshot.save(tmp_path / "b.safetensors", wait=True)
    saved, snapped = ((tmp_path / name).read_bytes() for name in ("a.safetensors", "b.safetensors"))
    assert len(saved) == len(snapped)
    header = 8 + int.from_bytes(saved[:8], "little")
    assert saved[header:] == snapped[header:]


class Copies(TorchDispatchMode):
    """Counts copies and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.sizes.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def test_one_copy_per_stream_whatever_the_number_of_variables() -> None:
    sizes = {}
    for count in (3, 300):
        model = nn.ParameterList(nn.Parameter(torch.randn(16)) for _ in range(count))
        store = fv.VarStore.from_module(model)
        optimizer = fv.optim.AdamW(store, lr=0.1)
        store.accumulate([torch.ones(16)] * count)
        optimizer.step()
        optimizer.zero_grad()
        with Copies() as copies:
            snapshot = store.snapshot(optimizer)
        small = [size for size in copies.sizes if size <= 8 * count]  # step counts and the count of skipped steps
        large = [size for size in copies.sizes if size > 8 * count]
        assert large == [store.values.nbytes] * 3
        assert snapshot.nbytes == 3 * store.values.nbytes
        sizes[count] = len(small)
    assert sizes[3] == sizes[300] <= 2


@pytest.mark.parametrize("make", [fv.optim.AdamW, fv.optim.NAdam, partial(fv.optim.SGD, lr=0.1, momentum=0.9)])
def test_rolling_back_copies_whole_streams_whatever_the_number_of_variables(make: Any) -> None:
    counts = {}
    for count in (3, 300):
        model = nn.ParameterList(nn.Parameter(torch.randn(16)) for _ in range(count))
        store = fv.VarStore.from_module(model)
        optimizer = make(store)
        store.accumulate([torch.ones(16)] * count)
        optimizer.step()
        optimizer.zero_grad()
        snapshot = store.snapshot(optimizer)
        before = values(store)
        store.values.zero_()
        with Copies() as copies:
            store.restore(snapshot)
        assert_values(store, before)
        counts[count] = len(copies.sizes)
    assert counts[3] == counts[300]


def carved(store: fv.VarStore) -> None:
    """Room is given up, so that others move."""
    store.freeze("embedding.*")
    store.compact()


def flipped(store: fv.VarStore) -> None:
    store.freeze("head.*")
    store["norm.bias"].param.requires_grad_(False)
    store.unfreeze("norm.weight")


def masked(store: fv.VarStore) -> None:
    store.set_trainable_mask("embedding.weight", torch.arange(11).view(-1, 1) > 4)
    store.set_trainable_mask("head.bias", torch.tensor([True, False, True, True, True]))


def unmasked(store: fv.VarStore) -> None:
    store.set_trainable_mask("embedding.weight", None)


@pytest.mark.parametrize("change", [carved, flipped, masked, unmasked])
@pytest.mark.parametrize("grads", ["gather", "views"])
def test_whatever_changed_since_is_rolled_back(change: Callable[[fv.VarStore], None], grads: str) -> None:
    torch.manual_seed(0)
    net = Net()
    store = fv.VarStore.from_module(net, grads=grads)
    optimizer = fv.optim.AdamW(store, lr=1e-2)
    store.set_trainable_mask("embedding.weight", torch.arange(11).view(-1, 1) > 2)
    store.freeze("norm.weight")

    def work() -> None:
        backward(net, batch())
        optimizer.step()
        optimizer.zero_grad()

    def all_of_it() -> str:
        flags = [(v.requires_grad, v.frozen, v.dtype) for v in store.variables().values()]
        masks = [store.trainable_mask(name) for name in store.variables()]
        return repr([{n: v.tolist() for n, v in values(store).items()}, flags, masks, optimizer.state_dict()["state"]])

    work()
    snapshot, before = store.snapshot(optimizer, rng=True), all_of_it()
    work()
    expected = all_of_it()
    for _ in range(2):
        change(store)
        work()
        store.restore(snapshot)
        store.check()
        assert all_of_it() == before
        work()
        assert all_of_it() == expected


def test_values_alone_go_back_where_variables_train_by_now() -> None:
    """They have room then that they had not: nothing lies where it lay."""
    net = Net()
    net.embedding.requires_grad_(False)
    store = fv.VarStore.from_module(net)
    snapshot, before = store.snapshot(), values(store)
    store.unfreeze("embedding.*")
    store.values.zero_()
    store.restore(snapshot)
    assert_values(store, before)
    assert store["embedding.weight"].requires_grad
    store.check()


def test_a_snapshot_of_other_groups_changes_nothing() -> None:
    net, store, optimizer = trained()
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    snapshot = store.snapshot(optimizer, scheduler)
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][1:]
    store.values.zero_()
    with pytest.raises(fv.MismatchError, match="the snapshot does not fit this store; nothing was changed"):
        store.restore(snapshot)
    assert not store.values.any()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits for it."""
    event = threading.Event()
    real = saving.write_path

    def write_path(*arguments: Any) -> None:
        assert event.wait(60)
        real(*arguments)

    monkeypatch.setattr(saving, "write_path", write_path)
    return event


def test_training_goes_on_while_a_snapshot_is_written(gate: threading.Event, tmp_path: Path) -> None:
    net, store, optimizer = trained()
    before = values(store)
    store.snapshot(optimizer).save(tmp_path / "model.safetensors")
    backward(net, batch())
    optimizer.step()
    assert not (tmp_path / "model.safetensors").exists()
    after = values(store)
    gate.set()
    store.snapshot(optimizer).wait()
    assert_values(store, after)
    store.load(tmp_path / "model.safetensors")
    assert_values(store, before)


def test_a_second_save_waits_for_the_first(gate: threading.Event, tmp_path: Path) -> None:
    _, store, optimizer = trained()
    store.snapshot(optimizer).save(tmp_path / "a.safetensors")
    second = store.snapshot(optimizer)
    waiting = threading.Thread(target=second.save, args=(tmp_path / "b.safetensors",))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "the second save did not wait"
    gate.set()
    waiting.join(60)
    second.wait()
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors"}


def test_memory_that_is_being_saved_is_not_taken_over(gate: threading.Event, tmp_path: Path) -> None:
    _, store, optimizer = trained()
    before = values(store)
    ring = SnapshotRing(store, optimizer, keep=1)
    ring.take().save(tmp_path / "model.safetensors")
    store.values.zero_()
    taking = threading.Thread(target=ring.take)
    taking.start()
    taking.join(0.2)
    assert taking.is_alive(), "the snapshot's memory was overwritten while it was saved"
    gate.set()
    taking.join(60)
    store.load(tmp_path / "model.safetensors")
    assert_values(store, before)


@pytest.mark.parametrize("where", ["snapshot", "save", "wait"])
def test_errors_of_the_background_surface_at_the_next_call_once(where: str, tmp_path: Path, caplog: Any) -> None:
    _, store, optimizer = trained()
    snapshot = store.snapshot(optimizer)
    with caplog.at_level(logging.ERROR, logger="flatvars"):
        snapshot.save(tmp_path / "gone" / "model.safetensors")
        snapshot._writer._job.future.exception()
    assert "in the background failed" in caplog.text
    call = {
        "snapshot": lambda: store.snapshot(optimizer),
        "save": lambda: snapshot.save(tmp_path / "model.safetensors"),
        "wait": snapshot.wait,
    }[where]
    with pytest.raises(fv.CheckpointError, match=r"gone/model\.safetensors in the background failed: folder"):
        call()
    call()
    snapshot.wait()


def test_a_path_of_no_format_is_refused_at_once(tmp_path: Path) -> None:
    _, store, optimizer = trained()
    snapshot = store.snapshot(optimizer)
    with pytest.raises(fv.CheckpointError, match="says no format"):
        snapshot.save(tmp_path / "model.npz")
    with pytest.raises(fv.CheckpointError, match="training state is saved in safetensors"):
        snapshot.save(tmp_path / "model.pt")
    snapshot.wait()


def test_a_ring_keeps_the_last_and_uses_memory_again() -> None:
    net, store, optimizer = trained()
    ring = SnapshotRing(store, optimizer, keep=3)
    seen, states = set(), []
    for _ in range(8):
        snapshot = ring.take()
        states.append(values(store))
        seen.add(snapshot.image().planes[0].held.buffer.data_ptr())
        backward(net, batch())
        optimizer.step()
        optimizer.zero_grad()
    assert len(ring) == 3
    assert len(seen) == 3
    ring.restore()
    assert_values(store, states[-1])
    ring.restore(back=2)
    assert_values(store, states[-3])
    assert len(ring) == 1
    with pytest.raises(fv.CheckpointError, match="holds 1 snapshots; there is none 1 before the last"):
        ring.restore(back=1)
    ring.take()
    ring.take()
    assert len({ring[i].image().planes[0].held.buffer.data_ptr() for i in range(3)} | seen) == 3
    with pytest.raises(ValueError, match="keep=0"):
        SnapshotRing(store, keep=0)


def test_memory_that_was_taken_over_cannot_be_restored() -> None:
    _, store, optimizer = trained()
    first = store.snapshot(optimizer)
    store.snapshot(optimizer, reuse=first)
    with pytest.raises(fv.CheckpointError, match="memory was taken over by a later one"):
        store.restore(first)


def test_rolling_back_across_a_recarve() -> None:
    net, store, optimizer = trained()
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    snapshot = store.snapshot(optimizer, scheduler)
    before, state = values(store), repr(optimizer.state_dict())
    store.freeze("head.*")
    store.compact()
    store.double()
    net.double()
    store.restore(snapshot)
    assert_values(store, before)
    assert repr(optimizer.state_dict()) == state
    assert store["head.weight"].requires_grad
    store.check()


def test_snapshots_of_other_stores_are_refused() -> None:
    _, store, optimizer = trained()
    snapshot = store.snapshot(optimizer)
    with pytest.raises(fv.MismatchError, match="is of another store"):
        fv.VarStore.from_module(Net()).restore(snapshot)
    store.add("more", torch.ones(3))
    with pytest.raises(fv.MismatchError, match="holds 8 variables, the store now 9"):
        store.restore(snapshot)


def test_a_snapshot_before_the_first_step_takes_state_back_to_nothing() -> None:
    net, store, optimizer = trained(steps=0)
    snapshot = store.snapshot(optimizer)
    backward(net, batch())
    optimizer.step()
    store.restore(snapshot)
    assert len(optimizer.state) == 0
    assert not any(stream.buffer.any() for stream in optimizer.capture().streams.values())
    assert net.head.weight.grad is None


def test_after_a_spike_of_the_loss() -> None:
    net, store, optimizer = trained()
    ring = SnapshotRing(store, optimizer, rng=True, keep=2)
    ring.take()
    good = values(store)
    backward(net, batch())
    net.head.weight.grad.fill_(float("nan"))
    optimizer.step()
    assert bool(store["head.weight"].value.isnan().any())
    ring.restore()
    assert_values(store, good)


def test_values_alone() -> None:
    _, store, optimizer = trained()
    snapshot = store.snapshot()
    before, state = values(store), repr(optimizer.state_dict())
    store.values.zero_()
    store.restore(snapshot)
    assert_values(store, before)
    assert repr(optimizer.state_dict()) == state


def test_a_store_that_is_gone_frees_its_buffers_while_snapshots_live() -> None:
    _, store, _ = trained()
    snapshot = store.snapshot()
    stream = weakref.ref(store.values)
    storage = weakref.ref(store.registry)
    del store, _
    gc.collect()
    assert storage() is None
    assert stream() is None
    assert snapshot.nbytes > 0


AT_EXIT = """
import concurrent.futures.thread as pool, sys, time
import torch
import flatvars as fv
from flatvars.checkpoint import save as saving

real = saving.write_path
def late(*arguments):
    while not pool._shutdown:  # until the interpreter is ending
        time.sleep(0.001)
    real(*arguments)
saving.write_path = late
store = fv.VarStore()
store.add("w", torch.arange(9_000_000.0))
store.snapshot().save(sys.argv[1])
"""


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.process
def test_a_save_that_was_begun_is_finished_when_the_program_ends(there: bool, tmp_path: Path) -> None:
    """In pieces that are large enough for checksums beside the writing, which no thread can be started for any more."""
    path = tmp_path / "model.safetensors"
    store = fv.VarStore()
    store.add("w", torch.zeros(9_000_000))
    if there:
        store.save(path)
    done = subprocess.run([sys.executable, "-c", AT_EXIT, path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    store.load(path)
    assert torch.equal(store["w"].value, torch.arange(9_000_000.0))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
