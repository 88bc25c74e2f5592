"""The shape of a description's JSON: a checksum tells that bits are as they were written, not that they make sense."""

from __future__ import annotations

from typing import Any

Schema = Any
"""A type, a range of integers, a set of words, None for anything, [schema] for lists, {"*": schema} for mappings,
{name: schema} for fields, of which those that begin with "?" may be missing, and (schema, schema) for either."""

COUNT = range(2**31)
DEEPEST = 50
"""Levels of lists and objects within each other; schedulers within schedulers have a dozen."""

OPTIMIZER: Schema = {
    "class": str,
    "states": [str],
    "groups": [{"hyper": {"*": None}, "variables": [str]}],
    "steps": {"*": (COUNT, {-0.0})},  # -0.0: no step was taken, and the state was set
    "skipped": COUNT,
    "?scalars": {"*": {"*": None}},
    "?loose": {"*": {"*": None}},
}
TRAINING: Schema = {
    "optimizers": [OPTIMIZER],
    "schedulers": [{"class": str, "state": {"*": None}}],
    "gradients": {"mode": {"gather", "views"}, "touched": [str], "pending": [str], "spent": bool, "fresh": bool},
    "random": (type(None), {"python": None, "numpy": None, "tensors": [str]}),
    "?seed": range(2**64),
}
VARIABLE: Schema = {"id": int, "trainable": bool, "frozen": bool, "room": bool, "group": int, "?names": [str]}
DESCRIPTION: Schema = {
    "crc32": {"*": str},
    "variables": {"*": VARIABLE},
    "layout": [[None]],
    "streams": [str],
    "training": (type(None), TRAINING),
    "save": str,
    "part": [int],
}


def has_form(value: Any, schema: Schema) -> bool:
    """Whether JSON has a shape; fields beyond those of the schema are allowed."""
    if schema is None:
        return True
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if isinstance(schema, set):
        return any(type(value) is type(allowed) and value == allowed for allowed in schema)
    if isinstance(schema, tuple):
        return any(has_form(value, one) for one in schema)
    if isinstance(schema, list):
        return isinstance(value, list) and all(has_form(item, schema[0]) for item in value)
    if not isinstance(schema, dict):
        return type(value) is schema  # not isinstance: True is an int, too
    if not isinstance(value, dict):
        return False
    if "*" in schema:
        return all(has_form(item, schema["*"]) for item in value.values())
    return all(
        has_form(value[name], field) if (name := key.lstrip("?")) in value else key != name
        for key, field in schema.items()
    )


def is_deep(value: Any) -> bool:
    """Whether JSON has more levels than `DEEPEST`: what walks through it would exhaust the stack."""
    level = [value]
    for _ in range(DEEPEST):
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [each for item in inner if isinstance(item, list) for each in item]
    return bool(level)
