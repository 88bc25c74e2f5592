"""The twin of `kernels/fill.py` on host memory: NumPy's Philox for the words, the same arithmetic on its arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import normal_pair, scale_uniform, truncated
from ..fills import CONSTANT, DIAGONAL, NORMAL, PER_BLOCK, UNIFORM, Draw, Fill, diagonal
from ..lang import eager_twin

# Elements that are computed together: temporaries of half as many float32 stay in a core's cache.
CHUNK = 32_768

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]
Piece = tuple[Fill, int, int]  # elements [begin, end) of a variable; begin is a multiple of PER_BLOCK


class Generator:
    """Words of any block of any key: one NumPy generator whose state is set, which is far cheaper than a new one."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
        self._state: Any = self._philox.state

    def words(self, key: int, block: int, blocks: int) -> Words:
        """[4 * blocks] uint64 from `block` on."""
        inner = self._state["state"]
        inner["key"][1] = key
        inner["counter"][:] = (block, 0, 0, 0)
        self._philox.state = self._state
        words: Words = self._philox.random_raw(4 * blocks)
        return words


def values(draw: Draw, words: Words) -> Floats:
    """The elements that random words become, [2 * words] float32."""
    halves = words.view(np.uint32)  # little-endian: the low half is first
    numbers = [float(number) for number in draw.numbers]
    if draw.kind == UNIFORM:
        unit = (halves >> 8).astype(np.float32) * 5.9604644775390625e-08
        scaled: Floats = eager_twin(scale_uniform)(unit, *numbers)
        return scaled
    if draw.kind == NORMAL:
        bits = halves[1::2].view(np.int32)
        swap, sign = ((bits >> 30) & 1).astype(np.float32), ((bits >> 31) | 1).astype(np.float32)
        turn = ((bits << 2) >> 2).astype(np.float32)
        made = np.empty(len(halves), dtype=np.float32)
        made[0::2], made[1::2] = eager_twin(normal_pair)(halves[0::2].astype(np.float32), turn, swap, sign)
        mean, std = numbers
        return made * std + mean
    cut: Floats = eager_twin(truncated)(halves.astype(np.float32), (~halves).astype(np.float32), *numbers)
    return cut


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
    alike: dict[Draw, list[Fill]] = defaultdict(list)
    for fill in fills:
        if fill.draw.is_random:
            alike[fill.draw].append(fill)
        else:
            fill_pattern(stream, fill)
    for draw, members in alike.items():
        fill_random(stream, draw, members, seed)


def fill_random(stream: Tensor, draw: Draw, fills: Sequence[Fill], seed: int) -> None:
    """Variables that share a distribution, many small ones at a time, on as many threads as torch uses."""
    # A variable in another memory order is made in the order of its indices, then copied.
    scratch = {fill: torch.empty(fill.count) for fill in fills if not fill.row_major}
    targets = {fill: scratch.get(fill, stream[fill.start : fill.start + fill.count]) for fill in fills}
    batches = list(pieces(fills))
    threads = max(1, min(torch.get_num_threads(), len(batches)))
    inference = torch.is_inference_mode_enabled()

    def work(first: int) -> None:
        generator = Generator(seed)
        # Modes belong to a thread: without, a new one could not write to tensors made in inference mode.
        with torch.inference_mode(inference), torch.no_grad():
            for batch in batches[first::threads]:
                fill_batch(targets, draw, batch, generator)

    if threads == 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    for fill, ordered in scratch.items():
        stream[fill.start :].as_strided(fill.shape, fill.stride).copy_(ordered.view(fill.shape))


def fill_batch(targets: Mapping[Fill, Tensor], draw: Draw, batch: list[Piece], generator: Generator) -> None:
    words = [generator.words(f.key, begin // PER_BLOCK, -(-(end - begin) // PER_BLOCK)) for f, begin, end in batch]
    made = torch.from_numpy(values(draw, np.concatenate(words) if len(words) > 1 else words[0]))
    at = 0
    for (fill, begin, end), piece in zip(batch, words, strict=True):
        real = max(begin, fill.first)
        targets[fill][real - fill.first : end - fill.first].copy_(made[at + real - begin : at + end - begin])
        at += 2 * len(piece)


def fill_pattern(stream: Tensor, fill: Fill) -> None:
    """Constants and diagonals, of the stretch `first` to `stop`."""
    part = stream[fill.start : fill.start + fill.count]  # dense: the same elements in any order
    part.fill_(fill.draw.numbers[0] if fill.draw.kind == CONSTANT else 0.0)
    if fill.draw.kind == DIAGONAL:
        ones = diagonal(fill.draw, torch.Size(fill.shape).numel())
        ones = ones[(ones >= fill.first) & (ones < fill.stop)]
        stream[torch.from_numpy(fill.positions(ones))] = 1.0
