"""Values in a bfloat16 that torch sees, and what it lacks of a float32 beside: the reference, by torch.

`split` keeps all of it: b the bits of a float32, upper = (b >> 16) + (b >> 15 & 1), which is the nearest bfloat16 with
    ties away from zero, and low = b & 0xFFFF. Then b = (upper - (low >> 15)) << 16 | low, for every float32 but NaN,
    which is quiet and has low bits of 0. Ties to even would make two numbers of 65,537 alike.

`corrected` keeps 8 bits of it: upper is the nearest bfloat16, ties to even, as torch rounds, and q, int8, says where
    between the middles of upper and its neighbors the number lies, in steps of 1/127 of half the last bit of upper:
    x = upper + q / 127 unit, rounded to float32      unit = 2^(max(E, 1) - 135), E the bits of upper's exponent
    q = (x - upper) / unit 127, rounded, ties away from zero; 0 of infinity and NaN
    Where q would decode to a middle that is nearer to the other bfloat16, ties to even, the number is stored as that
    middle from there, or beside a power of two by the code next to it. So upper is the nearest bfloat16 of what is
    decoded, too, and decoding and encoding again changes no bit. The error is 1.541e-5 of a number at most, and beside
    powers of two alone more than half of that; above 3.396e38, numbers are infinite.

The fingerprint of a unit of 128 bfloat16s tells whether anybody wrote to them: where it does not fit what is there,
their low bits count as 0, so that what was written is the value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .segments import UNIT

STEP = 4227330
"""2^29 / 127, rounded: q STEP / 2^14 is q / 127 of 2^15, nearer to it than any half is."""

_WORD, _INFINITY = 0xFFFFFFFF, 0x7F80


def in_units(numbers: Tensor) -> Tensor:
    """[numel] as [units, 128], with zeros behind the last."""
    tile = numbers.new_zeros(-(-numbers.numel() // UNIT), UNIT)
    tile.view(-1)[: numbers.numel()] = numbers
    return tile


def fingerprints(values: Tensor) -> Tensor:
    """Of each unit of bfloat16 values, int32 [units]."""
    bits = _words(values)
    place = torch.arange(len(bits), device=bits.device) % UNIT
    x = (bits | place << 16) * 0x9E3779B1 & _WORD
    x = (x ^ x >> 15) * 0x85EBCA77 & _WORD
    return _int32(in_units(x ^ x >> 13).sum(1) & _WORD)


def encode_split(numbers: Tensor) -> list[Tensor]:
    bits = numbers.float().view(torch.int32).long() & _WORD
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    upper = torch.where(is_nan, 0x7FC0 | bits >> 16 & 0x8000, (bits >> 16) + (bits >> 15 & 1))
    values = _int16(upper).view(torch.bfloat16)
    return [values, _int16(torch.where(is_nan, 0, bits)), fingerprints(values)]


def decode_split(parts: Sequence[Tensor]) -> Tensor:
    values, low, prints = parts
    upper, lower = _words(values), _words(low)
    lower = torch.where(_untouched(values, prints) & (((upper & 0x7FFF) != 0) | (lower < 0x8000)), lower, 0)
    return _int32((upper - (lower >> 15) & 0xFFFF) << 16 | lower).view(torch.float32)


def encode_corrected(numbers: Tensor) -> list[Tensor]:
    bits = numbers.float().view(torch.int32).long() & _WORD
    size, negative = bits & 0x7FFFFFFF, bits >> 31
    below, rest = size >> 16, size & 0xFFFF
    # Of 254 steps from the bfloat16 below to the one above it; the middle is that of the even one.
    q = (rest * 127 + 0x4000 - (rest > 0x8000).long()) >> 15
    # Above such a middle, up to a power of two, a step is twice as long, and the middle itself is no step of either.
    to_power = _is_power(below + 1)
    up = torch.where(to_power, rest >= 0x8000, q + (below & 1) > 127)
    beside_power = torch.where(up, -(((0x10000 - rest) * 127 + 0x8000) >> 16).clamp(max=63), q.clamp(max=126))
    q = torch.where(to_power, beside_power, q - 254 * up)
    upper = below + up
    q = torch.where(upper < _INFINITY, torch.where(negative == 1, -q, q), 0)
    upper = torch.where(size > 0x7F800000, 0x7FC0, upper)
    values = _int16(upper | negative << 15).view(torch.bfloat16)
    return [values, q.to(torch.int8), fingerprints(values)]


def decode_corrected(parts: Sequence[Tensor]) -> Tensor:
    values, low, prints = parts
    bits = _words(values)
    upper, q = bits & 0x7FFF, torch.where(bits >> 15 == 1, -low.long(), low.long())
    q = torch.where(_untouched(values, prints) & (upper < _INFINITY), q, 0)
    rest = torch.where((q < 0) & _is_power(upper), (q * STEP + 0x1000) >> 13, (q * STEP + 0x2000) >> 14)
    return _int32((upper << 16) + rest | bits >> 15 << 31).view(torch.float32)


def _is_power(upper: Tensor) -> Tensor:
    """Whether floats are half as far apart below a bfloat16 as above it."""
    return (upper & 0x7F == 0) & (upper > 0x80)


def _untouched(values: Tensor, prints: Tensor) -> Tensor:
    """Whether each value lies in a unit that its fingerprint fits."""
    return (fingerprints(values) == prints).repeat_interleave(UNIT)[: len(values)]


def _words(halves: Tensor) -> Tensor:
    """The bits of numbers of two bytes, int64."""
    return halves.view(torch.int16).long() & 0xFFFF


def _int32(words: Tensor) -> Tensor:
    """Numbers below 2^32 as the int32 of the same bits."""
    return (words - (words >> 31 << 32)).to(torch.int32)


def _int16(words: Tensor) -> Tensor:
    """The lower 16 bits of numbers as an int16."""
    low = words & 0xFFFF
    return (low - (low >> 15 << 16)).to(torch.int16)
