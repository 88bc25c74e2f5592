"""Headers that lie: refused with a clear error, before memory is taken for what they claim."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flatvars as fv

from .support import assert_values, forged, parts, raw, trained, values

ROOT = Path(__file__).parents[2]


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


DATA = b"\0" * 8
CASES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes and is no safetensors file"),
    "seven bytes": (b"\0" * 7, "has 7 bytes"),
    "length of 2^64-1": (raw({}, length=2**64 - 1), "claims a header of 18,446,744,073,709,551,615 bytes"),
    "length beyond the file": (raw({}, length=100), "claims a header of 100 bytes"),
    "length beyond the limit": (raw({}, length=100_000_001), "headers are at most 100,000,000"),
    "no JSON": (raw(b"{"), "is not JSON"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "is not JSON"),
    "a list": (raw([]), "is a JSON list, not an object"),
    "a number": (raw(b"7"), "is a JSON int"),
    "NaN": (raw(b'{"a": NaN}'), "NaN is not JSON"),
    "deep JSON": (raw(b"[" * 1_000_000), "is not JSON"),
    "deep objects": (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "is not JSON"),
    "a number of 10^6 digits": (raw(b'{"a": ' + b"1" * 1_000_000 + b"}"), "is not JSON"),
    "two of a name": (raw(b'{"a": {}, "a": {}}'), "has the name 'a' twice"),
    "two fields of a name": (raw(b'{"a": {"dtype": "F32", "dtype": "F64"}}'), "has the name 'dtype' twice"),
    "metadata no object": (raw({"__metadata__": 7}), "is not an object of strings"),
    "metadata of numbers": (raw({"__metadata__": {"a": 7}}), "is not an object of strings"),
    "tensor no object": (raw({"a": 7}), "described by a JSON int"),
    "no fields": (raw({"a": {}}), "has dtype 'None'"),
    "dtype no code": (raw({"a": entry("f32")}, DATA), "has dtype 'f32'"),
    "shape of nothing": (raw({"a": entry(shape=[0, 2**62, 4], offsets=[0, 0])}), "no tensor of so many elements"),
    "half a byte too few": (raw({"a": entry("F4", [4], [0, 1])}, b"\0"), "has 1 bytes .* needs 2"),
    "dtype no string": (raw({"a": entry(["F32"])}, DATA), "has dtype"),
    "wrong dtype": (raw({"a": entry("F64")}, DATA), "has 8 bytes .* needs 16"),
    "negative length": (raw({"a": entry(shape=[-2])}, DATA), "is not up to 64 lengths"),
    "length no integer": (raw({"a": entry(shape=[2.0])}, DATA), "is not up to 64 lengths"),
    "length true": (raw({"a": entry(shape=[True, 2])}, DATA), "is not up to 64 lengths"),
    "length 2^63": (raw({"a": entry(shape=[2**63])}, DATA), "is not up to 64 lengths"),
    "65 axes": (raw({"a": entry(shape=[1] * 65)}, DATA), "is not up to 64 lengths"),
    "a million axes": (raw({"a": entry(shape=[2**62] * 1_000_000)}, DATA), "is not up to 64 lengths"),
    "product beyond 2^64": (raw({"a": entry(shape=[2**62, 4])}, DATA), "needs 73786976294838206464"),
    "product that wraps to 8": (raw({"a": entry(shape=[2**62 + 1, 2, 2])}, DATA), "has 8 bytes"),
    "shape no list": (raw({"a": entry(shape="2")}, DATA), "is not up to 64 lengths"),
    "negative offset": (raw({"a": entry(offsets=[-8, 0])}, DATA), "not two bytes >= 0"),
    "offsets swapped": (raw({"a": entry(offsets=[8, 0])}, DATA), "has -8 bytes"),
    "three offsets": (raw({"a": entry(offsets=[0, 8, 8])}, DATA), "not two bytes >= 0"),
    "one offset": (raw({"a": entry(offsets=[8])}, DATA), "not two bytes >= 0"),
    "offset of 2^70": (raw({"a": entry(offsets=[0, 2**70])}, DATA), "not two bytes >= 0"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=[4, 12])}, DATA + b"\0" * 4), "overlaps the one before it"),
    "same bytes": (raw({"a": entry(), "b": entry()}, DATA), "overlaps the one before it"),
    "gap": (raw({"a": entry(), "b": entry(offsets=[12, 20])}, DATA * 3), "leaves a gap"),
    "gap at the start": (raw({"a": entry(offsets=[8, 16])}, DATA * 2), "leaves a gap"),
    "truncated": (raw({"a": entry()}, DATA[:-1]), "is truncated: its tensors take 8 bytes, and 7 are there"),
    "oversized": (raw({"a": entry()}, DATA + b"\0"), "is longer than its header says"),
    "data without tensors": (raw({}, DATA), "is longer than its header says"),
    "lone surrogate": (raw(b'{"\\ud800": {}}'), "no Unicode text"),
    "empty tensor out of place": (raw({"a": entry(), "b": entry(shape=[0], offsets=[4, 4])}, DATA), "starts at byte 4"),
}


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("stream", [False, True], ids=["file", "stream"])
def test_hostile_headers_are_refused(case: str, stream: bool, tmp_path: Path) -> None:
    content, message = CASES[case]
    (tmp_path / "bad.safetensors").write_bytes(content)
    store = fv.VarStore()
    store.add("a", torch.ones(2))
    before = values(store)
    for load in (store.load, store.load_partial, store.read, store.fill):
        with pytest.raises(fv.DamagedFileError, match=message):
            load(io.BytesIO(content) if stream else tmp_path / "bad.safetensors")
    assert_values(store, before)


def test_claims_cost_no_memory(tmp_path: Path) -> None:
    claims = [
        raw({}, length=99_999_999),
        raw({"a": entry(shape=[2**40], offsets=[0, 2**42])}, DATA),
        raw({"a": entry(shape=[2**62] * 64)}, DATA),
        raw({"a": entry("F64", shape=[2**20] * 2, offsets=[0, 2**43])}, DATA),
    ]
    store = fv.VarStore()
    store.add("a", torch.ones(2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in claims:
        (tmp_path / "bad.safetensors").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(fv.DamagedFileError):
            store.load(tmp_path / "bad.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"[", "is not JSON"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {"a": 7}}', "has no weight_map"),
        (b'{"weight_map": {"a": "../a.safetensors"}}', "names files outside of its folder"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "names files outside of its folder"),
        (b'{"weight_map": {"a": ".."}}', "names files outside of its folder"),
        (b'{"weight_map": {"a": "gone.safetensors"}}', "a shard is missing"),
        (b'{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}', "disagree on 'b'"),
        (b'{"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}}', "disagree on 'b'"),
    ],
)
def test_hostile_indexes_are_refused(index: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(raw({"a": entry()}, DATA))
    (tmp_path / "two.safetensors").write_bytes(raw({"b": entry(), "c": entry(offsets=[8, 16])}, DATA * 2))
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    store = fv.VarStore()
    store.add("a", torch.ones(2))
    with pytest.raises(fv.DamagedFileError, match=message):
        store.load(tmp_path)


def test_shards_of_two_saves_never_mix(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    store = fv.VarStore.from_module(model)
    store.save(tmp_path / "model.safetensors", shard_size=450)
    old = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    store.save(tmp_path / "model.safetensors", shard_size=450)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    new = sorted(set(index["weight_map"].values()))
    (tmp_path / new[1]).write_bytes(old[sorted(old)[1]])
    with pytest.raises(fv.DamagedFileError, match="names files of another save"):
        store.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("field", ["flatvars", "flatvars.crc32"])
def test_a_description_without_its_checksum_is_damaged(field: str, tmp_path: Path) -> None:
    _, store, _ = trained(tmp_path / "model.safetensors")
    header, data = parts((tmp_path / "model.safetensors").read_bytes())
    del header["__metadata__"][field]
    (tmp_path / "model.safetensors").write_bytes(raw(header, data))
    with pytest.raises(fv.DamagedFileError, match="does not fit its checksum"):
        store.load(tmp_path / "model.safetensors")


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda c: c.update(format=2),
    "no variables": lambda c: c.update(variables=7),
    "variable": lambda c: c["variables"].update(gain=7),
    "trainable": lambda c: c["variables"]["gain"].update(trainable="yes"),
    "names": lambda c: c["variables"]["gain"].update(names=[["a"]]),
    "more fields": lambda c: c.update(more=1),
    "no crc": lambda c: c["crc32"].pop("gain"),
    "training": lambda c: c.update(training=[]),
    "no optimizers": lambda c: c["training"].pop("optimizers"),
    "no groups": lambda c: c["training"]["optimizers"][0].update(groups=None),
    "hyper": lambda c: c["training"]["optimizers"][0]["groups"][0]["hyper"].update(lr={"$float": "x"}),
    "steps": lambda c: c["training"]["optimizers"][0]["steps"].update(gain="2"),
    "steps of nothing": lambda c: c["training"]["optimizers"][0]["steps"].update(nothing=2),
    "gradients": lambda c: c["training"].update(gradients={}),
    "gradient of nothing": lambda c: c["training"]["gradients"]["touched"].append("nothing"),
    "gradient that is not there": lambda c: c["training"]["gradients"]["touched"].append("gain"),
    "random": lambda c: c["training"].update(random=[1]),
}


@pytest.mark.parametrize("case", list(FORGERIES))
def test_forged_descriptions_are_refused_before_anything_changes(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    _, store, optimizer = trained(path)
    forged(path, lambda content: None)
    store.load(path, optimizer)
    store["head.bias"].value.add_(1.0)
    before, described = values(store), repr(optimizer.state_dict())
    forged(path, FORGERIES[case])
    with pytest.raises(fv.DamagedFileError):
        store.load(path, optimizer)
    assert_values(store, before)
    assert repr(optimizer.state_dict()) == described


def test_a_flipped_bit_is_named_with_its_variable(tmp_path: Path) -> None:
    _, store, optimizer = trained(tmp_path / "model.safetensors")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    header, _ = parts(bytes(content))
    start = 8 + int.from_bytes(content[:8], "little")
    before = values(store)
    for name in ("head.weight", "exp_avg_sq/norm.bias"):
        damaged = bytearray(content)
        damaged[start + header[name]["data_offsets"][1] - 1] ^= 4
        (tmp_path / "bad.safetensors").write_bytes(damaged)
        with pytest.raises(fv.DamagedFileError, match=f"tensor '{name}' of .*bad.safetensors is damaged"):
            store.load(tmp_path / "bad.safetensors", optimizer)
        assert_values(store, before)
    store.load(tmp_path / "bad.safetensors")  # the values are whole
    store.load(tmp_path / "bad.safetensors", optimizer, verify=False)


CHILD = """
import resource, sys, torch, flatvars as fv
store = fv.VarStore()
store.add("small", torch.ones(4))
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
limit = now + 256 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
store.load(sys.argv[1], strict=False)
assert not store.values[:4].any()
with fv.checkpoint.Checkpoint(sys.argv[1]) as file:
    assert file.slice("big", 0, 3, 1024).shape == (2**18,)
    try:
        file.tensor("big")
    except (RuntimeError, MemoryError):
        print("bounded")
"""


@pytest.mark.process
def test_a_file_larger_than_memory_is_read_in_pieces(tmp_path: Path) -> None:
    """The child may map 256 MiB more than it has, and the file has 1 GiB."""
    numel = 2**28
    header = {
        "big": entry(shape=[numel], offsets=[0, 4 * numel]),
        "small": entry(shape=[4], offsets=[4 * numel, 4 * numel + 16]),
    }
    with (tmp_path / "big.safetensors").open("wb") as file:
        content = raw(header)
        file.write(content)
        file.truncate(len(content) + 4 * numel + 16)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "big.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "bounded\n"
