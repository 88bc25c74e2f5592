"""Device helpers every kernel shares: tile rows, 64-bit offsets, gradient sources, stores.

`kernels/segments.py` says what a tile is and what its row holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..lang import INTERPRETED
from ..segments import Segments

TILE_COLUMNS = tl.constexpr(5)
VARIABLE_COLUMNS = tl.constexpr(3)
SOURCE_COLUMNS = tl.constexpr(2)
LINE_BITS = tl.constexpr(8 * Segments.LINE)
# The interpreter truncates where hardware rounds float32 to bfloat16 to nearest even: round by bits there.
ROUND_BITS = tl.constexpr(INTERPRETED)

DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}


@triton.jit
def tile_row(tiles_ptr, tile):
    """One row of the tile table: start, local, length, variable, group.

    `tile` is int64 from birth, so that no offset ever wraps. A length is at most that of a block: in 64 bits, masks
    take twice the registers, and the norm kernel 40 instead of 32.
    """
    row = tiles_ptr + tile * TILE_COLUMNS
    start = tl.multiple_of(tl.load(row), 16)
    local = tl.multiple_of(tl.load(row + 1), 16)
    return start, local, tl.load(row + 2).to(tl.int32), tl.load(row + 3), tl.load(row + 4)


@triton.jit
def padded_mask(lane, length):
    """Lanes up to the end of the padding: a multiple of 16, which lets masked accesses keep their full width."""
    return lane < ((length + 15) >> 4) << 4


@triton.jit
def load_typed(address, local, length, lane, DTYPE: tl.constexpr, COMPUTE: tl.constexpr):
    """Wide where the address and the length allow it, else one element at a time: decided for each tile.

    One gradient that lies askew then slows down no other, and compiles nothing anew.
    """
    # A source ends with its last element, not with padding. `tl.multiple_of` of what both branches share would widen
    # the masked accesses of the second one past the end as well.
    if (length % 16 == 0) & (address % 16 == 0):
        wide = tl.multiple_of(address.to(tl.pointer_type(DTYPE)) + local, 16)
        tile = tl.load(wide + lane, mask=lane < (length >> 4) << 4, other=0.0).to(COMPUTE)
    else:
        pointer = address.to(tl.pointer_type(DTYPE)) + local
        tile = tl.load(pointer + lane, mask=lane < length, other=0.0).to(COMPUTE)
    return tile


@triton.jit
def source_address(sources_ptr, variable):
    """Where the gradient of a variable lies; 0 if it has none."""
    return tl.load(sources_ptr + variable * SOURCE_COLUMNS)


@triton.jit
def load_source(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE: tl.constexpr):
    """A tile of the gradient of `variable`, which lies at `address`.

    SOURCE is the dtype of all gradients of the launch, or None where they differ and the table's code decides.
    """
    if SOURCE is not None:
        tile = load_typed(address, local, length, lane, SOURCE, COMPUTE)
    else:
        code = tl.load(sources_ptr + variable * SOURCE_COLUMNS + 1)
        if code == 0:
            tile = load_typed(address, local, length, lane, tl.float32, COMPUTE)
        elif code == 1:
            tile = load_typed(address, local, length, lane, tl.bfloat16, COMPUTE)
        elif code == 2:
            tile = load_typed(address, local, length, lane, tl.float16, COMPUTE)
        else:
            tile = load_typed(address, local, length, lane, tl.float64, COMPUTE)
    return tile


@triton.jit
def load_source_if_any(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE: tl.constexpr):
    """The same, or zeros where the variable has no gradient."""
    tile = tl.zeros_like(lane).to(COMPUTE)
    if address != 0:
        tile = load_source(sources_ptr, variable, address, local, length, lane, SOURCE, COMPUTE)
    return tile


@triton.jit
def clear_source(tiles_ptr, sources_ptr, tile, lane, SOURCE: tl.constexpr):
    """Writes -0.0 over a tile of a viewed gradient, up to the end of its last line, which is no other variable's.

    By its bits: Triton makes 0.0 of a constant that is equal to it. The stream begins on a multiple of 16 bytes. Shifts
    of the length keep accesses at their full width. Where the tile lies is read once more: to keep it through a step
    would take registers.
    """
    _, local, length, variable, _ = tile_row(tiles_ptr, tile)
    address = source_address(sources_ptr, variable)
    bits: tl.constexpr = SOURCE.primitive_bitwidth
    shift: tl.constexpr = 6 - bits // 32
    tl.static_assert(bits << shift == LINE_BITS)
    pointer = address.to(tl.pointer_type(tl.core.get_int_dtype(bits, True))) + local
    mark = tl.full(lane.shape, -(1 << (bits - 1)), pointer.dtype.element_ty)
    inside = lane < ((length + (1 << shift) - 1) >> shift) << shift
    tl.store(tl.multiple_of(pointer, 16) + lane, mark, mask=inside)


@triton.jit
def values_at(values_ptr, variable, start, local, length, lane, mask, PLACED):
    """Where the values of a tile lie, and which of its lanes are there.

    With PLACED, the dtype of values that lie wherever somebody else put them, `values_ptr` is a table of the addresses
    of the variables. Nothing is known of those, and what is behind the last element is not ours: no padding is touched.
    """
    if PLACED is not None:
        address = tl.load(values_ptr + variable).to(tl.pointer_type(PLACED))
        pointer, inside = address + local + lane, lane < length
    else:
        pointer, inside = values_ptr + (start + lane), mask
    return pointer, inside


@triton.jit
def load_frozen(frozen_ptr, start, lane, mask, BESIDE: tl.constexpr):
    """Which elements of a tile are masked: they keep value and state, and their gradient counts in no norm.

    BESIDE is the dtype of the stream that the mask goes with. Bytes could be read in longer pieces than its elements,
    and the compiler would then carry the other tiles through shared memory to where the mask's lie: so the pointer is
    known to be aligned to the number of elements that fit into 16 bytes, and no further.
    """
    address = frozen_ptr.to(tl.int64) + start
    pointer = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), 128 // BESIDE.primitive_bitwidth)
    return tl.load(pointer + lane, mask=mask, other=0) != 0


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """Rounds to nearest even, also in the interpreter; float64 to halves through float32, as torch does."""
    if x.dtype == tl.float64 and (tl.bfloat16 == DTYPE or tl.float16 == DTYPE):
        x = x.to(tl.float32)
    if ROUND_BITS and tl.bfloat16 == DTYPE and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        bits = tl.where(x == x, rounded, 0x7FC00000).to(tl.uint32)
        x = bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE)
