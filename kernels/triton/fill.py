"""Initialization: one launch writes all variables of a stream, each by its own kind, numbers and key.

    x[i] = draw(words(seed, key, i))        i: row-major index in the variable, whatever the memory order

Traffic: each element written once, 4 B in float32; nothing read but 32 B a tile and a row a variable.
Numerics: random values in float32 by single IEEE operations (`distributions.py`), bit-equal to the torch twin; rounded
last, to nearest even, or widened in float64 streams. Constants are rounded on the host, once.
Aliasing: writes the elements of its variables and no padding; variables of one launch must not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import distributions
from ..addresses import upload
from ..errors import FlatvarsError
from ..fills import AXES_AT as AXES_START
from ..fills import CONSTANT, DIAGONAL, NORMAL, UNIFORM, Fill, fill_tables
from ..fills import HEAD as HEAD_COLUMNS
from .compile import twin
from .launch import TILE, on
from .philox import philox_words
from .tiles import DTYPES, round_to

ROW = tl.constexpr(4)  # start, local, length, variable
HEAD, AXES_AT = tl.constexpr(HEAD_COLUMNS), tl.constexpr(AXES_START)
normal_pair, scale_uniform, truncated = map(
    twin, (distributions.normal_pair, distributions.scale_uniform, distributions.truncated)
)
IS_CONSTANT, IS_UNIFORM, IS_NORMAL, IS_DIAGONAL = map(tl.constexpr, (CONSTANT, UNIFORM, NORMAL, DIAGONAL))


@triton.jit
def number(row, i: tl.constexpr, DTYPE: tl.constexpr):
    """A number of a variable's row, which are float64 bits, in the dtype of the arithmetic."""
    return tl.load(row + HEAD + i).to(tl.float64, bitcast=True).to(DTYPE)


@triton.jit
def is_on_diagonal(index, row):
    columns, inner = tl.load(row + HEAD), tl.load(row + HEAD + 1)
    center, period = tl.load(row + HEAD + 2), tl.load(row + HEAD + 3)
    column = index // inner % columns
    return (index // inner // columns % period == column) & (index % inner == center)


@triton.jit
def random_pair(words, row, kind):
    """The two elements of each 64-bit word, low half first, in float32."""
    first, second = words.to(tl.uint32), (words >> 32).to(tl.uint32)
    if kind == IS_NORMAL:
        bits = second.to(tl.int32, bitcast=True)
        swap, sign = ((bits >> 30) & 1).to(tl.float32), ((bits >> 31) | 1).to(tl.float32)
        x, y = normal_pair(first.to(tl.float32), ((bits << 2) >> 2).to(tl.float32), swap, sign)
        mean, std = number(row, 0, tl.float32), number(row, 1, tl.float32)
        x, y = mean + std * x, mean + std * y
    elif kind == IS_UNIFORM:
        low, width, top = number(row, 0, tl.float32), number(row, 1, tl.float32), number(row, 2, tl.float32)
        x = scale_uniform((first >> 8).to(tl.float32) * 5.9604644775390625e-08, low, width, top)
        y = scale_uniform((second >> 8).to(tl.float32) * 5.9604644775390625e-08, low, width, top)
    else:
        x, y = truncated_half(first, row), truncated_half(second, row)
    return x, y


@triton.jit
def truncated_half(bits, row):
    left, right, width = number(row, 0, tl.float32), number(row, 1, tl.float32), number(row, 2, tl.float32)
    mean, std = number(row, 3, tl.float32), number(row, 4, tl.float32)
    low, high = number(row, 5, tl.float32), number(row, 6, tl.float32)
    count, complement = bits.to(tl.float32), (bits ^ 0xFFFFFFFF).to(tl.float32)
    return truncated(count, complement, left, right, width, mean, std, low, high)


@triton.jit
def scattered_offset(index, row, AXES: tl.constexpr):
    """Where elements lie whose memory order is not that of their indices."""
    offset = tl.zeros_like(index) + tl.load(row + 5)
    for i in tl.static_range(AXES):
        axis = row + AXES_AT + 2 * (AXES - 1 - i)
        length = tl.load(axis)
        offset += index % length * tl.load(axis + 1)
        index = index // length
    return offset


# A store's length would otherwise decide between versions: integers that are 1 or multiples of 16 are compiled in.
@triton.jit(do_not_specialize=["variables"])
def fill_kernel(
    table_ptr,  # int64: [tiles, 4], then a row for each variable
    stream_ptr,  # [numel] out
    variables,  # where the rows of the variables start in the table
    COLUMNS: tl.constexpr,
    AXES: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = table_ptr + tl.program_id(0).to(tl.int64) * ROW
    start = tl.multiple_of(tl.load(tile), 16)
    local = tl.multiple_of(tl.load(tile + 1), 16)
    length = tl.load(tile + 2)
    row = table_ptr + variables + tl.load(tile + 3) * COLUMNS
    lane = tl.arange(0, BLOCK)
    kind = tl.load(row)
    x = tl.zeros([BLOCK], COMPUTE)
    if kind == IS_CONSTANT:
        x += number(row, 0, COMPUTE)
    elif kind == IS_DIAGONAL:
        x = tl.where(is_on_diagonal(local + lane, row), 1.0, x)
    else:
        words = philox_words(tl.load(row + 1), tl.load(row + 2), local // 8, BLOCK // 8)
        first, second = random_pair(words, row, kind)
        x = tl.interleave(first, second).to(COMPUTE)
    x = round_to(x, stream_ptr.dtype.element_ty)
    if AXES > 0 and tl.load(row + 3) == 0:
        index = local + lane
        real = (index >= tl.load(row + 4)) & (lane < length)
        tl.store(stream_ptr + scattered_offset(index, row, AXES), x, mask=real)
    elif length % 16 == 0:
        tl.store(stream_ptr + start + lane, x, mask=lane < length // 16 * 16)
    else:
        tl.store(stream_ptr + start + lane, x, mask=lane < length)


def fill_(stream: Tensor, fills: Sequence[Fill], seed: int) -> None:
    """Writes all of `fills` into a stream: one copy of a table and one launch.

    Args:
        stream: [numel], contiguous.
        fills: Variables with elements, which do not overlap; at least one.
        seed: First word of the generator's key, in [0, 2^64).
    """
    if stream.dtype not in DTYPES:
        raise FlatvarsError(f"the fill kernel writes {', '.join(map(str, DTYPES))}; this stream is {stream.dtype}")
    tiles, variables, axes = fill_tables(fills, seed, TILE.block)
    host = torch.from_numpy(np.concatenate([tiles.ravel(), variables.ravel()]))
    table = torch.empty_like(host, device=stream.device)
    upload(table, host)
    with on(stream.device):
        fill_kernel[(len(tiles),)](
            table,
            stream,
            tiles.size,
            COLUMNS=variables.shape[1],
            AXES=axes,
            COMPUTE=tl.float64 if stream.dtype == torch.float64 else tl.float32,
            BLOCK=TILE.block,
            **TILE.options(),
        )
