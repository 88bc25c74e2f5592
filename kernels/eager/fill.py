"""The twin of `kernels/fill.py` on host memory: NumPy's Philox for the words, the same arithmetic on torch tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributions import normal_pair, scale_uniform, truncated
from ..fills import CONSTANT, DIAGONAL, NORMAL, PER_BLOCK, UNIFORM, Draw, Fill, diagonal
from ..lang import eager_twin

# Elements that are computed together: temporaries of half as many float32 stay in a core's cache.
CHUNK = 65_536

Piece = tuple[Fill, int, int]  # elements [begin, end) of a variable; begin is a multiple of PER_BLOCK


class Generator:
    """Words of any block of any key: one NumPy generator whose state is set, which is far cheaper than a new one."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
        self._state: Any = self._philox.state

    def words(self, key: int, block: int, blocks: int) -> np.ndarray:
        """[4 * blocks] uint64 from `block` on."""
        inner = self._state["state"]
        inner["key"][1] = key
        inner["counter"][:] = (block, 0, 0, 0)
        self._philox.state = self._state
        words: np.ndarray = self._philox.random_raw(4 * blocks)
        return words


def values(draw: Draw, words: np.ndarray) -> Tensor:
    """The elements that random words become, [2 * words] float32."""
    halves = words.view(np.uint32).reshape(-1, 2)  # little-endian: the low half is first
    if draw.kind == UNIFORM:
        bits = torch.from_numpy((halves >> np.uint32(8)).view(np.int32))
        unit = bits.to(torch.float32) * 5.9604644775390625e-08
        scaled: Tensor = eager_twin(scale_uniform)(unit, *draw.numbers)
        return scaled.view(-1)
    counts = torch.from_numpy(halves.astype(np.float32))
    if draw.kind == NORMAL:
        bits = torch.from_numpy(halves[:, 1].view(np.int32).copy())
        swap, sign = ((bits >> 30) & 1).to(torch.float32), ((bits >> 31) | 1).to(torch.float32)
        pair = eager_twin(normal_pair)(counts[:, 0].contiguous(), ((bits << 2) >> 2).to(torch.float32), swap, sign)
        mean, std = draw.numbers
        return torch.stack(pair, dim=1).view(-1) * std + mean
    complements = torch.from_numpy((~halves).astype(np.float32))
    cut: Tensor = eager_twin(truncated)(counts, complements, *draw.numbers)
    return cut.view(-1)


def pieces(fills: Sequence[Fill]) -> Iterator[list[Piece]]:
    """Cuts variables into lists of at most CHUNK elements each."""
    batch: list[Piece] = []
    room = CHUNK
    for fill in fills:
        begin = fill.first // PER_BLOCK * PER_BLOCK
        while begin < fill.stop:
            end = min(fill.stop, begin + room)
            batch.append((fill, begin, end))
            room -= -(-(end - begin) // PER_BLOCK) * PER_BLOCK
            begin = end
            if room == 0:
                yield batch
                batch, room = [], CHUNK
    if batch:
        yield batch


def fill_(stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
    """Writes all of `fills` into a stream; arguments as for `kernels.fill.fill_`, any floating dtype."""
    generator = Generator(seed)
    alike: dict[Draw, list[Fill]] = defaultdict(list)
    for fill in fills:
        if fill.draw.is_random:
            alike[fill.draw].append(fill)
        else:
            fill_pattern(stream, fill)
    for draw, members in alike.items():
        fill_random(stream, draw, members, generator)


def fill_random(stream: Tensor, draw: Draw, fills: Sequence[Fill], generator: Generator) -> None:
    """Variables that share a distribution, many small ones at a time."""
    # A variable in another memory order is made in the order of its indices, then copied.
    scratch = {fill: torch.empty(fill.count) for fill in fills if not fill.row_major}
    for batch in pieces(fills):
        words = [generator.words(f.key, begin // PER_BLOCK, -(-(end - begin) // PER_BLOCK)) for f, begin, end in batch]
        made = values(draw, np.concatenate(words) if len(words) > 1 else words[0])
        at = 0
        for (fill, begin, end), piece in zip(batch, words, strict=True):
            real = max(begin, fill.first)
            target = scratch[fill] if fill in scratch else stream[fill.start : fill.start + fill.count]
            target[real - fill.first : end - fill.first].copy_(made[at + real - begin : at + end - begin])
            at += 2 * len(piece)
    for fill, ordered in scratch.items():
        stream[fill.start :].as_strided(fill.shape, fill.stride).copy_(ordered.view(fill.shape))


def fill_pattern(stream: Tensor, fill: Fill) -> None:
    """Constants and diagonals, of the stretch `first` to `stop`."""
    part = stream[fill.start : fill.start + fill.count]  # dense: the same elements in any order
    part.fill_(fill.draw.numbers[0] if fill.draw.kind == CONSTANT else 0.0)
    if fill.draw.kind == DIAGONAL:
        ones = diagonal(fill.draw, torch.Size(fill.shape).numel())
        ones = ones[(ones >= fill.first) & (ones < fill.stop)]
        stream[torch.from_numpy(fill.positions(ones))] = 1.0
