"""Python values as JSON and back, exactly: tuples, tensors, infinite numbers and keys that are no strings.

What JSON has no word for is an object with one key that starts with "$". Nothing here runs code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, DamagedFileError
from .header import CODE_OF, DTYPE_OF

_MAPS = {"dict": dict, "counter": Counter}


def encode(value: Any, where: str) -> Any:
    """A value as JSON types.

    Args:
        value: None, bool, int, float, str, lists, tuples, mappings, and small tensors of them.
        where: What it belongs to, for the error.

    Raises:
        CheckpointError: another type.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, list):
        return [encode(item, where) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, where) for item in value]}
    if isinstance(value, Tensor):
        items = [encode(item, where) for item in value.detach().cpu().reshape(-1).tolist()]
        return {"$tensor": [CODE_OF[value.dtype], list(value.shape), items]}
    if isinstance(value, Mapping):
        return _encode_map(value, where)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return encode(value.item(), where)
    raise CheckpointError(
        f"{where} holds a {type(value).__name__}, which is not data that a checkpoint keeps (numbers, strings, lists, "
        "tuples, dicts, tensors); keep it yourself, or leave its owner out of the call"
    )


def _encode_map(value: Mapping[Any, Any], where: str) -> Any:
    plain = all(isinstance(key, str) and not key.startswith("$") for key in value) and not isinstance(value, Counter)
    if plain:
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    kind = "counter" if isinstance(value, Counter) else "dict"
    return {"$" + kind: [[encode(key, where), encode(item, where)] for key, item in value.items()]}


def decode(value: Any) -> Any:
    """The value that `encode` was given; tensors lie on the CPU.

    Raises:
        DamagedFileError: JSON that `encode` does not write.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: decode(item) for key, item in value.items()}
    ((tag, content),) = value.items()
    try:
        return _decode_tagged(tag[1:], content)
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise DamagedFileError(f"a value tagged {tag!r} cannot be read: {error}") from error


def decode_map(value: Any, where: str) -> dict[Any, Any]:
    """The mapping that `encode` was given.

    Raises:
        DamagedFileError: it is none.
    """
    found = decode(value)
    if not isinstance(found, dict):
        raise DamagedFileError(f"{where} is a {type(found).__name__}, and was saved as a mapping")
    return found


def decode_number(value: Any, where: str) -> float:
    """The number that `encode` was given.

    Raises:
        DamagedFileError: it is none, or beyond float64.
    """
    found = decode(value)
    try:
        return float(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(f"{where} is {str(found)[:40]!r}, and was saved as a number") from error


def _decode_tagged(kind: str, content: Any) -> Any:
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(decode(item) for item in content)
    if kind == "tensor":
        code, shape, items = content
        return torch.tensor([decode(item) for item in items], dtype=DTYPE_OF[code]).reshape(shape)
    return _MAPS[kind]({decode(key): decode(item) for key, item in content})
