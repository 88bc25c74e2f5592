"""How numbers are stored: formats, which both compilers load and store, and which files and state dicts decode.

A plain stream holds numbers as its dtype says. A stream of a format holds codes, and buffers beside them: an item for
each element, or for each unit of 128 elements of a variable, counted from the variable's start in memory. So what is
stored depends on no layout, block, thread or rank. Inside, all arithmetic is float32.

`root8`, of states, 8.25 bits an element: s = largest finite magnitude of the unit, as float32;
    signed      code = sign(x) floor(127 sqrt(|x| / s) + 1/2), int8      x = s y |y|,   y = code * (1 / 127)
    unsigned    code = floor(255 (x / s)^(1/4) + 1/2), uint8             x = s (y y)^2, y = code * (1 / 255)
    with 1 / 127 and 1 / 255 rounded to float32. Of unsigned numbers only 0 has code 0, so that an average of squares
    never vanishes beside a momentum. A signed number that is not finite has code -128, which is NaN; an unsigned one
    has code 255. Where s is 0, all of the unit is 0. Decoding and encoding again changes no bit.

`split` and `corrected`, of values, 32.25 and 24.25 bits an element: a bfloat16, what it lacks of a float32, and a
    fingerprint of each unit of bfloat16s (`split.py`).

`stochastic`, of values, 16 bits an element: a bfloat16, and nothing beside; a step rounds it at random, up as often as
what is cut off is large, so that steps far below its last bit move it by their sum on average (`triton/stochastic.py`).

`log4`, of averages of squares, 4.25 bits an element: a code of 4 bits, two to a byte, the first of them low; and for
each unit an int32, top << 16 | step. Code 0 is 0, any other the bfloat16 of bits top - (15 - code) step: the bits of
positive floats are their logarithm, linear between powers of two, and so the 15 numbers grow by one factor, about.
    step = the least power of 2 up to 128, so that 15 multiples of it reach from the least to the largest, or else 128
    top = upper bits of the largest finite number, rounded up to a multiple of step: as the largest and the least
    change, a grid moves by whole steps, and what was on it is on it
    code = 1 + k + (p > 1 - (r + 1/2) / 65536)      first = top - 14 step, k = floor((bits of x - first) / step)
    p is where x lies between the numbers of codes 1 + k and 2 + k, by log2 of their bits: exponent, mantissa m, and
    m (1 - m) (1813 - 672 m) / 4096. So the logarithm of what is stored is that of x on average, and an average decays
    at its own rate. r, 16 bits, is random over elements, and turned on by every step, by 40503 (2^16 over the golden
    ratio) modulo 2^16: so each element is rounded up as often as it should be in a few hundred steps, where draws of
    every step would let averages wander off. Of these numbers only 0 has code 0, what is below the first has 1, and
    what is not finite 15. Who encodes without draws has the nearest. What was decoded comes back number for number,
    whatever the draws, though maybe by other codes: masked elements stay while the step of their unit does not grow.

`Format.encode` and `decode` are the reference, by torch, of one variable at a time; `root_*` are what kernels compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .lang import QUIET, absolute, device_function, div_rn, sqrt_rn, where
from .segments import UNIT
from .split import decode_corrected, decode_split, encode_corrected, encode_split, in_units


class FormatPart(NamedTuple):
    """One buffer of a format.

    Attributes:
        name: What files call it, behind the stream's name; "" of the first, which holds an item for each element.
        dtype: Of the buffer.
        each: How many elements have one item.
    """

    name: str
    dtype: torch.dtype
    each: int = 1

    @property
    def units(self) -> bool:
        """Whether it has an item for each unit, counted over the variables, and not for so many elements."""
        return self.each == UNIT

    def items(self, numel: int) -> int:
        """Of a variable of so many elements."""
        return -(-numel // self.each)


@dataclass(frozen=True)
class Format:
    """A way to store float32 numbers in other buffers.

    Attributes:
        name: As users and files call it.
        parts: Its buffers, codes first.
        encode: The parts of a variable's numbers, [numel] in memory order.
        decode: From its parts to float32 [numel]; one more of packed codes of an odd number of elements.
        is_exact: Whether every float32 comes back, but for the bits of a NaN.
    """

    name: str
    parts: tuple[FormatPart, ...]
    encode: Callable[[Tensor], list[Tensor]] = field(compare=False)
    decode: Callable[[Sequence[Tensor]], Tensor] = field(compare=False)
    is_exact: bool = field(default=False, compare=False)

    def numbers(self, parts: Sequence[Tensor], numel: int) -> Tensor:
        """Decodes a variable, float32 [numel]."""
        found = self.decode(parts)
        return found if len(found) == numel else found[:numel].clone()

    @property
    def is_plain(self) -> bool:
        """Whether a buffer of its dtype holds all there is, and only a step stores otherwise than torch does."""
        return len(self.parts) == 1


def _scaled(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Units of numbers, [units, 128], with zeros behind the last; and the scale of each, [units, 1]."""
    tile = in_units(numbers.float())
    magnitudes = torch.where(torch.isfinite(tile), tile.abs(), 0.0)
    return tile, magnitudes.amax(1, keepdim=True)


def encode_root(numbers: Tensor) -> list[Tensor]:
    tile, scale = _scaled(numbers)
    code = 127.0 * (tile.abs() / torch.where(scale > 0.0, scale, 1.0)).sqrt() + 0.5
    code = torch.where(tile.isfinite(), torch.where(tile < 0.0, -code, code), -128.0)
    return [code.to(torch.int8).view(-1)[: numbers.numel()], scale.view(-1)]


def decode_root(parts: Sequence[Tensor]) -> Tensor:
    codes, scales = parts
    y = codes.float() * ONE_127TH
    scale = scales.repeat_interleave(UNIT)[: codes.numel()]
    return torch.where(codes > -128, scale * (y * y.abs()), torch.nan)


def encode_root_of_squares(numbers: Tensor) -> list[Tensor]:
    tile, scale = _scaled(numbers)
    ratio = torch.where(tile > 0.0, tile / torch.where(scale > 0.0, scale, 1.0), 0.0)
    code = 255.0 * ratio.sqrt().sqrt() + 0.5
    code = torch.where((tile > 0.0) & (code < 1.0), 1.0, code)
    code = torch.where(tile.isfinite(), code, 255.0)
    return [code.to(torch.uint8).view(-1)[: numbers.numel()], scale.view(-1)]


def decode_root_of_squares(parts: Sequence[Tensor]) -> Tensor:
    codes, scales = parts
    square = (codes.float() * ONE_255TH).square()
    return scales.repeat_interleave(UNIT)[: codes.numel()] * (square * square)


def encode_log(numbers: Tensor, draws: Tensor | None = None) -> list[Tensor]:
    """With draws, 16 bits of each element, [numel] int32, as a step stores it."""
    tile = in_units(numbers.float())
    random = in_units(torch.full_like(numbers, 0x8000, dtype=torch.int32) if draws is None else draws)
    bits = tile.view(torch.int32).long()
    counts = (tile > 0.0) & tile.isfinite()
    top, step = _grid(torch.where(counts, bits, 0), torch.where(counts, bits >> 16, LARGEST_HALF))
    first = top - 14 * step
    kept, wide = torch.where(counts, bits, first << 16), step << 16
    place = (kept - (first << 16)).float() * (1.0 / (step.clamp(min=1) << 16).float())
    place = place.long().clamp(0, 14)
    below = (first << 16) + place * wide
    bend, rest = _bend(below), (kept - below).float() * 2.0**-23
    rest, whole = rest + (_bend(kept) - bend), wide.float() * 2.0**-23 + (_bend(below + wide) - bend)
    place = (place + (rest > (65535.5 - random.float()) * 2.0**-16 * whole)).clamp(max=14)
    code = torch.where(counts, 1 + place, torch.where(tile.isfinite(), 0, 15))
    pairs = code.view(-1)[: 2 * ((numbers.numel() + 1) // 2)].view(-1, 2)
    return [(pairs[:, 0] | pairs[:, 1] << 4).to(torch.uint8), (top << 16 | step).to(torch.int32).view(-1)]


def _bend(bits: Tensor) -> Tensor:
    """What log2(1 + m) is more than m, m being the mantissa of floats; its slope is right to 0.5 %."""
    m = (bits & 0x7FFFFF).float() * 2.0**-23
    return (m * (1.0 - m)) * (BEND - BEND_LESS * m)


def _grid(bits: Tensor, halves: Tensor) -> tuple[Tensor, Tensor]:
    """Top and step of each unit, [units, 1].

    Args:
        bits: Of numbers, [units, 128], 0 of those that do not count.
        halves: Their upper halves, the largest there is of those that do not count.
    """
    largest = ((bits.amax(1, keepdim=True) + 0xFFFF) >> 16).clamp(max=LARGEST_HALF)
    least = torch.minimum(halves.amin(1, keepdim=True), largest)
    top, step = largest, torch.zeros_like(largest)
    for wider in STEPS:
        above = ((largest + wider - 1) & -wider).clamp(max=LARGEST_HALF & -wider)
        fits = above - (least & -wider) <= 14 * wider
        chosen = (above > 14 * wider) & (fits | (step == 0))
        top, step = torch.where(chosen, above, top), torch.where(chosen, wider, step)
    return top, step


def _float_of_half(upper: Tensor) -> Tensor:
    """The numbers of upper halves."""
    return (upper << 16).to(torch.int32).view(torch.float32)


def decode_log(parts: Sequence[Tensor]) -> Tensor:
    pairs, grid = parts
    codes = torch.stack([pairs & 15, pairs >> 4], 1).view(-1).long()
    grid = grid.long().repeat_interleave(UNIT)[: len(codes)]
    return torch.where(codes > 0, _float_of_half((grid >> 16) - (15 - codes) * (grid & 0xFFFF)), 0.0)


LARGEST_HALF, STEPS, TURN = 0x7F7F, (128, 64, 32, 16, 8, 4, 2, 1), 40503
"""Of `log4`: upper bits of the largest number, how far numbers of a grid may be apart, what a step adds to draws."""
BEND, BEND_LESS = 1813 / 4096, 672 / 4096
"""1 / ln(2) - 1 and 3 / (2 ln(2)) - 2, about: by them the slope of a logarithm is met at both ends of an octave."""

ONE_127TH, ONE_255TH = 0.007874015718698502, 0.003921568859368563
"""1 / 127 and 1 / 255 in float32: 127 and 255 times them are 1."""

_SCALE = FormatPart("scale", torch.float32, UNIT)
ROOT8 = Format("root8", (FormatPart("", torch.int8), _SCALE), encode_root, decode_root)
ROOT8_SQUARES = Format("root8", (FormatPart("", torch.uint8), _SCALE), encode_root_of_squares, decode_root_of_squares)
SPLIT = Format(
    "split",
    (FormatPart("", torch.bfloat16), FormatPart("low", torch.int16), FormatPart("print", torch.int32, UNIT)),
    encode_split,
    decode_split,
    is_exact=True,
)
CORRECTED = Format(
    "corrected",
    (FormatPart("", torch.bfloat16), FormatPart("low", torch.int8), FormatPart("print", torch.int32, UNIT)),
    encode_corrected,
    decode_corrected,
)
STOCHASTIC = Format(
    "stochastic",
    (FormatPart("", torch.bfloat16),),
    lambda numbers: [numbers.to(torch.bfloat16)],
    lambda parts: parts[0].float(),
)

LOG4 = Format("log4", (FormatPart("", torch.uint8, 2), FormatPart("scale", torch.int32, UNIT)), encode_log, decode_log)

STATE_FORMATS: dict[str, tuple[Format | None, Format]] = {"root8": (ROOT8, ROOT8_SQUARES), "log4": (None, LOG4)}
"""By name: the format of states, and that of averages of squares."""


def state_format_of(dtypes: Sequence[torch.dtype]) -> Format | None:
    """The format of states whose parts are of these dtypes."""
    known = [format_ for pair in STATE_FORMATS.values() for format_ in pair if format_ is not None]
    return next((one for one in known if [part.dtype for part in one.parts] == list(dtypes)), None)


def is_rounded(dtype: torch.dtype, format_: Format | None) -> bool:
    """Whether a state that is stored so is rounded at random, where its rule asks for it."""
    return format_ == LOG4 if format_ is not None else dtype == torch.bfloat16


class Stored(NamedTuple):
    """Buffers of a stream, as launches want them.

    Attributes:
        buffer: [elements of its range].
        format: None where the buffer's dtype says all.
        beside: The buffers of the other parts of the format.
        at_random: Of values in bfloat16 without a format: a step rounds them at random, if it is given keys.
        places: int64 [variables of the launch] on the device: the address of each variable, where values lie wherever
            somebody else put them; `buffer` is then empty, and says of which dtype they are.
    """

    buffer: Tensor
    format: Format | None = None
    beside: tuple[Tensor, ...] = ()
    at_random: bool = False
    places: Tensor | None = None


def as_stored(stream: Tensor | Stored) -> Stored:
    """A tensor is stored as its dtype says."""
    return stream if stream.__class__ is Stored else Stored(stream)  # type: ignore[return-value, arg-type]


# What kernels compile -------------------------------------------------------------------------------------------------


@device_function
def root_code(x, scale):
    """The code of a signed number, before what is behind the point is cut off."""
    code = 127.0 * sqrt_rn(div_rn(absolute(x), where(scale > 0.0, scale, 1.0))) + 0.5
    return where(x - x == 0.0, where(x < 0.0, 0.0 - code, code), -128.0)


@device_function
def root_number(code, scale):
    y = code * ONE_127TH
    return where(code > -128.0, scale * (y * absolute(y)), QUIET)


@device_function
def root_code_of_square(x, scale):
    """The same of a number that is never negative."""
    code = 255.0 * sqrt_rn(sqrt_rn(where(x > 0.0, div_rn(x, where(scale > 0.0, scale, 1.0)), 0.0))) + 0.5
    code = where((x > 0.0) & (code < 1.0), 1.0, code)
    return where(x - x == 0.0, code, 255.0)


@device_function
def root_square(code, scale):
    square = (code * ONE_255TH) * (code * ONE_255TH)
    return scale * (square * square)
