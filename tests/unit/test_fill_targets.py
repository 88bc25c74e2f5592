"""Targets of initialization: names, seeds, places; everything is checked before the first byte is written."""

from __future__ import annotations

import hashlib
from unittest.mock import patch

import numpy as np
import pytest
import torch

import flatvars as fv
from flatvars.init import Initializer
from flatvars.init.fills import Target, fill_, name_key

NORMAL = fv.init.normal()


def target(name: str = "w", numel: int = 8, initializer: Initializer = NORMAL, **place: object) -> Target:
    given = {"stream": torch.full((16,), 7.0), "offset": 0, "shape": (numel,), "stride": (1,), **place}
    return Target(name, initializer, **given)  # type: ignore[arg-type]


@pytest.mark.row("J-15")
def test_the_key_of_a_name() -> None:
    assert name_key("layer1.weight") == int.from_bytes(hashlib.sha256(b"layer1.weight").digest()[:8], "little")
    assert 0 <= name_key("größe") < 2**64
    assert len({name_key(f"layers.{i}.weight") for i in range(10_000)}) == 10_000


@pytest.mark.row("J-15")
def test_two_names_of_one_hash_are_refused() -> None:
    targets = [target("a"), target("b")]
    with (
        patch("flatvars.init.fills.name_key", return_value=5),
        pytest.raises(fv.InitError, match="'a' and 'b' have the same"),
    ):
        fill_(targets, 0)
    assert bool((targets[0].stream == 7.0).all())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_are_64_bits(seed: int) -> None:
    with pytest.raises(fv.InitError, match="does not fit 64 bits"):
        fill_([target()], seed)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 1, 2**63, 2**64 - 1])
def test_values_are_numpys_stream_of_seed_and_name(seed: int) -> None:
    """Anyone can make them again: the first elements are the top 24 bits of each 32-bit half, low half first."""
    made = fv.init.tensor(fv.init.uniform(), (9,), "w", seed=seed)
    key = np.array([seed, name_key("w")], dtype=np.uint64)
    halves = np.random.Philox(key=key).random_raw(5).view(np.uint32)[:9]
    assert made.tolist() == ((halves >> 8) / 2.0**24).tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stream": torch.empty(16, device="meta")}, "flat contiguous stream"),
        ({"stream": torch.zeros(4, 4)}, "flat contiguous stream"),
        ({"stream": torch.zeros(32)[::2]}, "flat contiguous stream"),
        ({"shape": (4, 2), "stride": (4, 1)}, "is not dense"),
        ({"offset": 9}, "do not fit a stream of 16 at 9"),
        ({"offset": -1}, "do not fit"),
        ({"first": 4, "count": 5}, "elements 4 to 9 of variable 'w' with 8"),
        ({"shape": (2, 4), "stride": (1, 2), "first": 1}, "a part of variable 'w'"),
        ({"shape": (2, 4), "stride": (4, 1), "first": 1, "initializer": fv.init.orthogonal()}, "a part of variable"),
        ({"stream": torch.zeros(16, dtype=torch.int64)}, "is torch.int64 and takes zeros"),
        ({"stream": torch.zeros(16, dtype=torch.int64), "initializer": fv.init.constant(0.5)}, "give an integer"),
    ],
    ids=str,
)
def test_places_that_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(fv.InitError, match=message):
        fill_([target(**wrong)], 0)  # type: ignore[arg-type]


def test_nothing_is_written_when_one_of_many_does_not_fit() -> None:
    good = target("good")
    orthogonal = target("q", shape=(2, 4), stride=(4, 1), initializer=fv.init.orthogonal())
    with pytest.raises(fv.InitError, match="variable 'bad'"):
        fill_([good, orthogonal, target("bad", initializer=fv.init.eye())], 0)
    assert bool((good.stream == 7.0).all())
    assert bool((orthogonal.stream == 7.0).all())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool], ids=str)
@pytest.mark.row("T-I-01")
def test_integers_take_constants(dtype: torch.dtype) -> None:
    stream = torch.zeros(16, dtype=dtype)
    fill_([target(stream=stream, initializer=fv.init.ones(), offset=3)], 0)
    assert stream.tolist() == [0] * 3 + [1] * 8 + [0] * 5


@pytest.mark.parametrize("initializer", [fv.init.orthogonal(), fv.init.sparse(0.5), fv.init.eye(), NORMAL], ids=str)
@pytest.mark.parametrize("stride", [(4, 1), (1, 3)], ids=["rows", "columns"])
def test_memory_that_begins_inside_a_storage(initializer: Initializer, stride: tuple[int, int]) -> None:
    memory = torch.full((40,), 7.0)
    fill_([Target("w", initializer, memory[5:], 3, (3, 4), stride)], 4)
    assert torch.equal(memory.as_strided((3, 4), stride, 8), fv.init.tensor(initializer, (3, 4), "w", seed=4))
    assert memory[:8].tolist() + memory[20:].tolist() == [7.0] * 28


def test_a_lone_parameter() -> None:
    """Its own memory is a stream; nothing beyond it is touched, whatever its length."""
    memory = torch.full((40,), 7.0)
    param = torch.nn.Parameter(memory[3:16])
    fill_([Target("w", NORMAL, param.detach(), 0, (13,), (1,))], 4)
    assert torch.equal(param, fv.init.tensor(NORMAL, (13,), "w", seed=4))
    assert memory[:3].tolist() + memory[16:].tolist() == [7.0] * 27
