"""What objects say of themselves: summaries, reprs, and errors that name what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import flatvars as fv


def test_a_summary_has_headers_totals_and_columns_that_hold_long_names() -> None:
    store = fv.VarStore()
    long = "a" * 60 + ".weight"
    store.add(long, torch.zeros(3, 100))
    store.add("b", torch.zeros(2), trainable=False)
    store.add("c", nn.Parameter(torch.zeros(5, dtype=torch.bfloat16), requires_grad=False))
    opt = fv.optim.SGD(store, lr=0.1, momentum=0.9)
    store[long].param.grad = torch.ones(3, 100)
    opt.step()
    lines = store.summary().splitlines()
    assert lines[0].split() == ["variable", "shape", "dtype", "elements", "state"]
    columns = [lines[0].index(word) for word in ("shape", "dtype", "state")]
    starts = [[line[column - 2 : column + 1] for column in columns] for line in lines[1:4]]
    assert all(part[:2] == "  " and part[2] != " " for parts in starts for part in parts)
    assert lines[1].split() == [long, "(3,", "100)", "float32", "300", "trainable"]
    assert lines[4] == "3 variables, 307 elements: 300 trainable, 5 frozen, 2 in buffers"
    streams = [line.split() for line in lines[lines.index("") + 1 :]]
    assert streams[0] == ["stream", "dtype", "bytes"]
    assert ["optimizer1.momentum_buffer", "float32"] in [line[:2] for line in streams]
    assert sum(int(line[2].replace(",", "")) for line in streams[1:-1]) == store.registry.streams.nbytes
    assert lines[-1] == f"{store.registry.streams.nbytes:,} bytes on cpu"


def test_an_optimizer_says_what_it_steps_and_how() -> None:
    store = fv.VarStore.from_module(nn.Linear(4, 2))
    lr = torch.tensor(0.5)
    opt = fv.optim.AdamW([{"params": "weight"}, {"params": "bias", "lr": lr}], store=store, lr=1e-3, max_norm=1.0)
    assert repr(opt) == (
        "AdamW(\n"
        "  store: 2 variables on cpu\n"
        "  max_norm=1.0\n"
        "  group 0: 1 parameters, 8 elements; lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, "
        "decoupled_weight_decay=True\n"
        "  group 1: 1 parameters, 2 elements; lr=0.5, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, "
        "decoupled_weight_decay=True\n"
        ")"
    )
    store.release()
    assert "store: 0 variables" in repr(opt)


def test_snapshots_rings_and_checkpoints_say_what_they_hold(tmp_path: Path) -> None:
    store = fv.VarStore.from_module(nn.Linear(4, 2))
    opt = fv.optim.SGD(store, lr=0.1)
    ring = fv.checkpoint.SnapshotRing(store, opt, rng=True, keep=1)
    assert repr(ring) == "SnapshotRing(0 of at most 1 snapshots, 0 bytes)"
    first = ring.take()
    assert repr(first) == f"Snapshot(2 variables, 1 optimizer, random state, {first.nbytes:,} bytes)"
    assert repr(store.snapshot()) == f"Snapshot(2 variables, {store.values.nbytes:,} bytes)"
    ring.take()
    assert repr(first) == "Snapshot(its memory was taken over by a later one)"
    assert repr(ring) == f"SnapshotRing(1 of at most 1 snapshots, {store.values.nbytes:,} bytes)"
    store.save(tmp_path / "a.safetensors")
    with fv.checkpoint.Checkpoint(tmp_path / "a.safetensors") as file:
        assert repr(file).startswith("Checkpoint('")
        assert repr(file).endswith("a.safetensors', 2 tensors, written by flatvars)")


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("0", r"'0\.\*' is what selects the 2 below it"),
        ("block.", r"'block\.\*' is what selects the 1 below it"),
        ("weight", r"the nearest are '0\.weight', 'block\.weight'"),
        ("0.wieght", r"the nearest are '0\.weight'"),
    ],
)
def test_a_name_that_is_none_is_answered_with_what_was_meant(asked: str, answer: str) -> None:
    store = fv.VarStore.from_module(nn.ModuleDict({"0": nn.Linear(3, 2), "block": nn.Linear(2, 2, bias=False)}))
    with pytest.raises(fv.UnknownNameError, match=answer):
        store[asked]
    with pytest.raises(fv.UnknownNameError, match=answer):
        store.freeze(asked)
    with pytest.raises(fv.UnknownNameError, match=answer):
        fv.optim.SGD([{"params": asked}], store=store)
    with pytest.raises(fv.UnknownNameError, match="looked up by name, and a int"):
        store[0]  # type: ignore[index]


def test_a_variable_counts_its_elements() -> None:
    store = fv.VarStore.from_module(nn.Linear(4, 2))
    assert [variable.numel for variable in store.variables().values()] == [8, 2]
