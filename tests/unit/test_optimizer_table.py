"""The README's table of optimizers: all of them, and what their rules say of bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import flatvars as fv
from flatvars.kernels import rules

README = (Path(__file__).parents[2] / "README.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.split("| `fv.optim.` |")[1].split("\n\n")[0].splitlines()[2:]
]
CLASSES = [name for name in fv.optim.__all__ if isinstance(getattr(fv.optim, name), type)]
NO_OPTIMIZERS = {"EMA", "Optimizer", "Rule", "VariableStats"}
# Of classes that choose among rules: the one with the fewest states, and with the most.
RULES = {
    "SGD": (rules.SGD, rules.SGD_MOMENTUM),
    "Adam": (rules.ADAM, rules.AMSGRAD),
    "AdamW": (rules.ADAMW, rules.AMSGRADW),
    "StableAdamW": (rules.STABLE_ADAMW,) * 2,
    "ScheduleFreeAdamW": (rules.SCHEDULE_FREE_ADAMW,) * 2,
    "ScheduleFreeSGD": (rules.SCHEDULE_FREE_SGD,) * 2,
    "RMSprop": (rules.RMSPROP, rules.RMSPROP_CENTERED_MOMENTUM),
}
# Classes whose steps are not launches alone, and users' rules.
APART = ("RuleOptimizer", "Muon", "NorMuon", "Adafactor")
# Bytes that the launch of the statistics adds: gradient and second moment; value and both moments once more (the step
# reads no gradient, and moves no moment); value and gradient; both gradients; as of LAMB.
FIRST_LAUNCH = {"StableAdamW": 8, "LAMB": 12, "LARS": 8, "MARS": 8, "Prodigy": 12}


def test_every_optimizer_has_a_row() -> None:
    listed = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(listed) == sorted(set(CLASSES) - NO_OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "row"),
    [(name, row) for row in ROWS for name in re.findall(r"`(\w+)`", row[0]) if name not in APART],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bytes_follow_from_states(name: str, row: list[str]) -> None:
    few, many = RULES.get(name) or (getattr(rules, name.upper()),) * 2
    numbers = [int(number) for number in re.findall(r"\d+", row[2])]
    more = FIRST_LAUNCH.get(name, 0)
    assert numbers == sorted({12 + 8 * len(few.states) + more, 12 + 8 * len(many.states) + more})
    assert int(re.findall(r"\d+", row[1])[0]) == len(few.states)
    assert ("scalar" in row[1]) == bool(few.own)
    assert row[3] == ("1" if few.statistics is None else "2")


def test_bytes_of_adafactor() -> None:
    """Gradients gathered, means over rows and columns, directions in their place; sums of values and these, a step."""
    (row,) = (row for row in ROWS if "`Adafactor`" in row[0])
    assert rules.ADAFACTOR.states == ()
    assert row[2] == f"{8 + 2 * 4 + 8 + 8 + 12}, and what stays in caches"
    assert row[3] == "3, and 23 operators for each shape"


def test_bytes_of_muon() -> None:
    """Gradient, momentum twice, directions in bfloat16 three times, value twice; products apart."""
    (row,) = (row for row in ROWS if "`Muon`" in row[0])
    assert row[1] == str(len(rules.MUON.states))
    assert row[2] == f"{4 + 8 + 3 * 2 + 8} and the products"
    (more,) = (row for row in ROWS if "`NorMuon`" in row[0])
    assert more[1] == f"{len(rules.MUON.states)}, and a number of each output"
    # Directions are read for their squares, read once more and written.
    assert more[2] == f"{4 + 8 + 3 * 2 + 8 + 3 * 2} and the products"
