"""A save is whole or did not happen: processes killed at random, at every call, or saving against each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flatvars as fv

ROOT = Path(__file__).parents[2]
TMPFS_SIZE = 1 << 20
KILLS = 80
"""At random moments; every call to the system is met by another test."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals: run it on Linux or macOS")


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.checkpoint.crash", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.process
def test_killed_at_random_moments(tmp_path: Path) -> None:
    found = re.match(r"(\d+) killed, version (\d+)", run("random", str(tmp_path), str(KILLS)))
    assert found is not None
    assert int(found[1]) == KILLS
    assert int(found[2]) > 20, "children were killed before they saved anything"


@pytest.mark.process
def test_killed_at_every_call_to_the_system(tmp_path: Path) -> None:
    found = re.match(r"(\d+) killed", run("steps", str(tmp_path), "200"))
    assert found is not None
    assert int(found[1]) >= 40


@pytest.mark.process
def test_processes_that_save_to_one_path_never_mix(tmp_path: Path) -> None:
    found = re.match(r"(\d+) reads", run("rivals", str(tmp_path), "15"))
    assert found is not None
    assert int(found[1]) >= 5


CHILD = """
import resource, sys, os, torch, flatvars as fv
path, limit = sys.argv[1], int(sys.argv[2])
store = fv.VarStore()
store.add("weight", torch.ones(100_000))
store.save(path)
store.add("more", torch.ones(250_000))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
before = open(path, "rb").read()
for size in (None, "150KB"):
    try:
        store.save(path, shard_size=size)
    except fv.CheckpointError as error:
        print(error)
    assert open(path, "rb").read() == before
    assert os.listdir(os.path.dirname(path)) == ["model.safetensors"], os.listdir(os.path.dirname(path))
try:
    store.save(path.replace(".safetensors", ".pt"))
except (fv.CheckpointError, RuntimeError) as error:
    print(error)
assert os.listdir(os.path.dirname(path)) == ["model.safetensors"]
fresh = fv.VarStore()
fresh.add("weight", torch.zeros(100_000))
fresh.load(path)
assert bool((fresh["weight"].value == 1).all())
"""


@pytest.mark.process
def test_a_limit_on_file_sizes_leaves_the_old_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model.safetensors"), "500000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no room to save" in done.stdout
    assert "What was there before is untouched" in done.stdout


@pytest.mark.process
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """On a small file system of the test's own, mounted in a namespace."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size={TMPFS_SIZE} tmpfs {folder}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a tmpfs (unshare -rm); the limit on file sizes is tested above")
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    child = f"{mount} && PYTHONPATH={ROOT} {sys.executable} {script} {folder}/model.safetensors 0"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", child], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no room to save") == 3
    assert "No space left on device" in done.stdout


def test_a_full_stream_is_reported() -> None:
    store = fv.VarStore()
    store.add("weight", torch.ones(100_000))
    with (
        open("/dev/full", "wb", buffering=0) as stream,
        pytest.raises(fv.CheckpointError, match=r"no room .* the stream"),
    ):
        store.save(stream)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    store = fv.VarStore()
    store.add("weight", torch.ones(3))
    (tmp_path / "data").mkdir()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "data" / "real.safetensors")
    store.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").is_symlink()
    assert os.listdir(tmp_path / "data") == ["real.safetensors"]
    store.load(tmp_path / "model.safetensors")


def test_a_link_to_shards_loads(tmp_path: Path) -> None:
    """The shards and their index lie beside what the link points to."""
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.add("b", torch.ones(3))
    (tmp_path / "data").mkdir()
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "data" / "real.safetensors")
    for size in (12, None, 12):
        store.save(link, shard_size=size)
        store.values.zero_()
        store.load(link)
        assert store["b"].value.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [None, 12], ids=["file", "shards"])
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o440])
def test_a_replaced_file_keeps_its_mode_and_group(mode: int, size: int | None, tmp_path: Path) -> None:
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.add("b", torch.ones(3))
    path = tmp_path / "model.safetensors"
    store.save(path)
    group = max(os.getgroups(), default=os.getgid())
    os.chown(path, -1, group)
    path.chmod(mode)
    store.save(path, shard_size=size)
    store.save(path, shard_size=size)
    assert {(p.stat().st_mode & 0o777, p.stat().st_gid) for p in tmp_path.iterdir()} == {(mode, group)}


def test_a_draft_that_may_not_be_opened_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of another user left in a shared folder. Root opens everything: the answer is faked."""
    draft = tmp_path / ".model.safetensors.0123abcd.tmp"
    draft.write_bytes(b"")
    real = os.open

    def refuse(path: object, *arguments: int, **more: int) -> int:
        if str(path) == str(draft):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.save(tmp_path / "model.safetensors")
    store.values.zero_()
    store.load(tmp_path / "model.safetensors")
    assert store["a"].value.tolist() == [1.0, 1.0, 1.0]
    assert draft.exists()


@pytest.mark.parametrize("size", [None, 12], ids=["file", "shards"])
@pytest.mark.parametrize("fault", ["bytes", "length"])
def test_a_file_that_reads_back_otherwise_replaces_nothing(
    fault: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk or a network file system that does not keep what it was given."""
    store = fv.VarStore()
    store.add("a", torch.ones(3))
    store.add("b", torch.ones(3))
    path = tmp_path / "model.safetensors"
    store.save(path)
    before = path.read_bytes()
    real = os.lseek

    def spoil(descriptor: int, position: int, how: int) -> int:
        """Before anything is read back."""
        there = real(descriptor, 0, os.SEEK_CUR)
        if (position, how) == (0, os.SEEK_SET) and there and fault == "bytes":
            os.pwrite(descriptor, b"x", 20)
        if (position, how) == (0, os.SEEK_SET) and there and fault == "length":
            os.truncate(descriptor, os.fstat(descriptor).st_size - 1)
        return real(descriptor, position, how)

    monkeypatch.setattr(os, "lseek", spoil)
    with pytest.raises(fv.CheckpointError, match="did not keep what was written"):
        store.save(path, shard_size=size)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
