"""Thousands of damaged files: each is refused and changes nothing, or loads as what was saved."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import flatvars as fv

from .support import raw, trained

MUTATIONS = 4_000


def mutate(content: bytes, rng: random.Random, header: int) -> bytes:
    """One change of the kinds that disks, networks and people make; half of them in the header."""
    data = bytearray(content)
    place = rng.randrange(8 + header if rng.random() < 0.5 else len(data))
    kind = rng.randrange(7)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place] = rng.randrange(256)
    elif kind == 2:
        del data[place : place + rng.randrange(1, 64)]
    elif kind == 3:
        data[place:place] = rng.randbytes(rng.randrange(1, 64))
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        stop = place + rng.randrange(1, 64)
        data[place:stop] = bytes(len(data[place:stop]))
    else:
        other = rng.randrange(len(data))
        data[place : place + 16], data[other : other + 16] = data[other : other + 16], data[place : place + 16]
    return bytes(data)


def fingerprint(store: fv.VarStore, optimizer: fv.optim.Optimizer) -> list[bytes]:
    record = optimizer.capture()
    streams = [store.values, *(held.buffer for held in record.streams.values())]
    return [stream.numpy().tobytes() for stream in streams] + [repr(sorted(record.counts().items())).encode()]


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused_or_equal(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _, store, optimizer = trained(path)
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    saved = fingerprint(store, optimizer)
    store["head.bias"].value.add_(1.0)
    elsewhere = fingerprint(store, optimizer)
    rng = random.Random(seed)
    refused = 0
    for _ in range(MUTATIONS // 4):
        damaged = mutate(content, rng, header)
        path.write_bytes(damaged)
        try:
            store.load(path, optimizer)
        except fv.CheckpointError:
            refused += 1
            assert fingerprint(store, optimizer) == elsewhere
        else:
            assert fingerprint(store, optimizer) == saved, "a damaged file was loaded"
            store["head.bias"].value.add_(1.0)
    assert refused > 0.9 * MUTATIONS // 4


def test_random_headers_raise_nothing_but_the_error_for_them(tmp_path: Path) -> None:
    """Structured: JSON that is nearly a header."""
    rng = random.Random(0)
    store = fv.VarStore()
    store.add("a", torch.ones(2))
    odd = [
        None,
        True,
        -1,
        0,
        1,
        2,
        8,
        2**31,
        2**63,
        2**64,
        1.5,
        "F32",
        "a",
        [],
        [0, 8],
        [2],
        [2**62, 2],
        {},
        "F64",
        "U8",
    ]
    for _ in range(2_000):
        fields = {key: rng.choice(odd) for key in ("dtype", "shape", "data_offsets") if rng.random() < 0.95}
        whole = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        header = {rng.choice(["a", "b", "__metadata__"]): rng.choice([{**whole, **fields}, rng.choice(odd), whole])}
        if rng.random() < 0.5:
            header["b"] = {**whole, "data_offsets": [rng.choice([0, 4, 8]), rng.choice([8, 12, 16])]}
        (tmp_path / "x.safetensors").write_bytes(raw(header, bytes(rng.choice([0, 7, 8, 12, 16]))))
        try:
            store.load(tmp_path / "x.safetensors")
        except fv.CheckpointError:
            assert bool((store["a"].value == 1).all())
        else:
            assert not store["a"].value.any()
            store["a"].value.fill_(1.0)
