"""The shape of a description's JSON: a checksum tells that bits are as they were written, not that they make sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DamagedFileError
from .header import Entry

Schema = Any
"""A type, None for anything, [schema] for lists, {"*": schema} for mappings, {name: schema} for fields."""

VARIABLE: Schema = {"id": int, "trainable": bool, "frozen": bool, "room": bool, "group": int}
OPTIMIZER: Schema = {
    "class": str,
    "states": [str],
    "groups": [{"hyper": {"*": None}, "variables": [str]}],
    "steps": {"*": int},
    "skipped": int,
}
GRADIENTS: Schema = {"mode": str, "touched": [str], "pending": [str], "spent": bool, "fresh": bool}
TRAINING: Schema = {
    "optimizers": [OPTIMIZER],
    "schedulers": [{"class": str, "state": None}],
    "gradients": GRADIENTS,
    "random": None,
}
RANDOM: Schema = {"python": None, "numpy": None, "tensors": [str]}


def fits(value: Any, schema: Schema) -> bool:
    """Whether JSON has a shape; fields beyond those of the schema are allowed."""
    if schema is None:
        return True
    if isinstance(schema, list):
        return isinstance(value, list) and all(fits(item, schema[0]) for item in value)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return False
        if "*" in schema:
            return all(fits(item, schema["*"]) for item in value.values())
        return all(name in value and fits(value[name], field) for name, field in schema.items())
    return type(value) is schema  # not isinstance: True is an int, too


def check_content(
    variables: Mapping[str, Any], training: Mapping[str, Any] | None, entries: Mapping[str, Entry], where: str
) -> None:
    """Raises DamagedFileError where a description is none, or names what the file does not hold."""
    if not fits(dict(variables), {"*": VARIABLE}):
        raise DamagedFileError(f"{where} describes variables in another way than its format has it")
    if any(not fits(about.get("names", []), [str]) for about in variables.values()):
        raise DamagedFileError(f"{where} has names of variables that are no strings")
    if training is None:
        return
    if not fits(training, TRAINING) or not (training["random"] is None or fits(training["random"], RANDOM)):
        raise DamagedFileError(f"{where} describes training state in another way than its format has it")
    gradients = training["gradients"]
    needed = [f"grads/{name}" for name in gradients["touched"]] + [f"pending/{name}" for name in gradients["pending"]]
    needed += training["random"]["tensors"] if training["random"] is not None else []
    named = {name for one in training["optimizers"] for group in one["groups"] for name in group["variables"]}
    named |= {name for one in training["optimizers"] for name in one["steps"]}
    named |= {*gradients["touched"], *gradients["pending"]}
    absent = [key for key in needed if key not in entries] + [name for name in named if name not in variables]
    if absent:
        raise DamagedFileError(f"{where} lacks {absent[0]!r}, which its training state needs")
