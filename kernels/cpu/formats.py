"""How numbers are stored: from and to the dtype of the arithmetic, rounded to nearest even, by integers where the
processor may have no instruction for it. LLVM makes vectors of all of it.

bfloat16 is the upper half of a float32. float16 after Fabian Giesen's `float_to_half_fast3_rtne` and `half_to_float`
(public domain, 2012): an addition rounds what becomes subnormal. NaN stays NaN: bfloat16's is 0x7FC0, as torch makes
it; float16's keeps sign and upper bits, as hardware does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from llvmlite import ir

from ..errors import FlatvarsError

I16, I32 = ir.IntType(16), ir.IntType(32)
F32, F64 = ir.FloatType(), ir.DoubleType()


@dataclass(frozen=True)
class Format:
    """One way to store a number.

    Attributes:
        name: As torch calls the dtype.
        size: Bytes.
        code: Position in `sources.SOURCE_DTYPES`.
    """

    name: str
    size: int
    code: int

    @property
    def stored(self) -> Any:
        """What LLVM loads and stores."""
        return {"float32": F32, "float64": F64}.get(self.name, I16)

    def widen(self, builder: Any, raw: Any, compute: Any) -> Any:
        """What is stored, in `compute`, a scalar or a vector of float32 or float64."""
        if self.name == "float64":
            return raw if _is_double(compute) else builder.fptrunc(raw, compute)
        if self.name == "bfloat16":
            raw = _from_bfloat16(builder, raw)
        elif self.name == "float16":
            raw = _from_float16(builder, raw)
        return builder.fpext(raw, compute) if _is_double(compute) else raw

    def round(self, builder: Any, value: Any) -> Any:
        """A computed number as it is stored. float64 goes to halves through float32, as in torch."""
        if self.name == "float64":
            return value if _is_double(value.type) else builder.fpext(value, F64)
        if _is_double(value.type):
            value = builder.fptrunc(value, _like(value.type, F32))
        if self.name == "bfloat16":
            return _to_bfloat16(builder, value)
        return _to_float16(builder, value) if self.name == "float16" else value


def round_at_random(builder: Any, value: Any, draw: Any) -> Any:
    """A computed number as bfloat16, up as often as what is cut off is large; `draw` is an i16. See `stochastic.py`."""
    if _is_double(value.type):
        value = builder.fptrunc(value, _like(value.type, F32))
    wide = _like(value.type, I32)
    cut = builder.lshr(cut_at_random(builder, value, builder.zext(draw, wide)), _constant(wide, 16))
    return builder.trunc(cut, _like(value.type, I16))


def cut_at_random(builder: Any, value: Any, draw: Any) -> Any:
    """Bits of which the upper half is the bfloat16; `value` is float32, `draw` 16 bits in an i32."""
    wide = draw.type
    bits = builder.bitcast(value, wide)
    exponent = builder.and_(bits, _constant(wide, 0x7F800000))
    is_finite = builder.icmp_unsigned("!=", exponent, _constant(wide, 0x7F800000))
    is_number = builder.fcmp_ordered("ord", value, value)
    other = builder.select(is_number, bits, _constant(wide, 0x7FC00000))
    return builder.select(is_finite, builder.add(bits, draw), other)


def cut_to_nearest(builder: Any, value: Any) -> Any:
    """The same, rounded to nearest even."""
    wide = _like(value.type, I32)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 1))
    rounded = builder.add(bits, builder.add(odd, _constant(wide, 0x7FFF)))
    return builder.select(builder.fcmp_ordered("ord", value, value), rounded, _constant(wide, 0x7FC00000))


FORMATS = {
    "float32": Format("float32", 4, 0),
    "bfloat16": Format("bfloat16", 2, 1),
    "float16": Format("float16", 2, 2),
    "float64": Format("float64", 8, 3),
}


def name_of(dtype: torch.dtype) -> str:
    """Of the format that a dtype is stored in.

    Raises:
        FlatvarsError: no kernel knows it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in FORMATS:
        raise FlatvarsError(f"kernels read and write {', '.join(FORMATS)}; this stream is {dtype}")
    return name


def _is_double(type_: Any) -> bool:
    return isinstance(getattr(type_, "element", type_), ir.DoubleType)


def _like(type_: Any, element: Any) -> Any:
    """`element`, or a vector of as many as `type_` has."""
    return ir.VectorType(element, type_.count) if isinstance(type_, ir.VectorType) else element


def _constant(type_: Any, value: Any) -> Any:
    return ir.Constant(type_, [value] * type_.count if isinstance(type_, ir.VectorType) else value)


def _from_bfloat16(builder: Any, raw: Any) -> Any:
    wide = _like(raw.type, I32)
    bits = builder.shl(builder.zext(raw, wide), _constant(wide, 16))
    return builder.bitcast(bits, _like(raw.type, F32))


def _to_bfloat16(builder: Any, value: Any) -> Any:
    wide = _like(value.type, I32)
    cut = builder.lshr(cut_to_nearest(builder, value), _constant(wide, 16))
    return builder.trunc(cut, _like(value.type, I16))


def _from_float16(builder: Any, raw: Any) -> Any:
    wide, single = _like(raw.type, I32), _like(raw.type, F32)

    def number(value: int) -> Any:
        return _constant(wide, value)

    half = builder.zext(raw, wide)
    bits = builder.shl(builder.and_(half, number(0x7FFF)), number(13))
    exponent = builder.and_(bits, number(0x0F800000))
    bits = builder.add(bits, number((127 - 15) << 23))
    special = builder.add(bits, number((128 - 16) << 23))
    # A subnormal's exponent is one too small for its leading 0: the subtraction normalizes it, exactly.
    shifted = builder.bitcast(builder.add(bits, number(1 << 23)), single)
    subnormal = builder.bitcast(builder.fsub(shifted, _constant(single, 2.0**-14)), wide)
    bits = builder.select(builder.icmp_unsigned("==", exponent, number(0x0F800000)), special, bits)
    bits = builder.select(builder.icmp_unsigned("==", exponent, number(0)), subnormal, bits)
    sign = builder.shl(builder.and_(half, number(0x8000)), number(16))
    return builder.bitcast(builder.or_(bits, sign), single)


def _to_float16(builder: Any, value: Any) -> Any:
    wide, single = _like(value.type, I32), _like(value.type, F32)

    def number(bits: int) -> Any:
        return _constant(wide, bits)

    whole = builder.bitcast(value, wide)
    bits = builder.and_(whole, number(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(bits, number(13)), number(1))
    # (15 - 127) << 23 changes the exponent's bias; 0xFFF and the last bit that stays round to even.
    normal = builder.lshr(builder.add(builder.add(bits, number(0xC8000FFF)), odd), number(13))
    moved = builder.fadd(builder.bitcast(bits, single), _constant(single, 0.5))
    subnormal = builder.sub(builder.bitcast(moved, wide), number(0x3F000000))
    half = builder.select(builder.icmp_unsigned("<", bits, number(0x38800000)), subnormal, normal)
    half = builder.select(builder.icmp_unsigned(">=", bits, number(0x47800000)), number(0x7C00), half)
    kept = builder.or_(builder.lshr(builder.and_(bits, number(0x7FFFFF)), number(13)), number(0x7E00))
    half = builder.select(builder.icmp_unsigned(">", bits, number(0x7F800000)), kept, half)
    sign = builder.and_(builder.lshr(whole, number(16)), number(0x8000))
    return builder.trunc(builder.or_(half, sign), _like(value.type, I16))
