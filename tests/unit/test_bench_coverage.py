"""`python -m bench --quick` covers every kernel once: what there is comes from the package, what runs from its cells.

Launches are noted and not made, so that nothing is compiled; the gates of the cells are in `test_bench_cases.py`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import flatvars as fv
import flatvars.kernels.cpu
from bench.cases.cell import BEYOND, FAMILY, STATES, Cell
from bench.cases.hyper import OUR_NAMES, TORCH_NAMES
from bench.peers.flat import FLATVARS
from bench.plan import quick_cells
from flatvars.kernels import formats, rules
from flatvars.kernels.cpu import launches as cpu_launches
from flatvars.kernels.formats import Format, Stored
from flatvars.kernels.launches import Compiler, Launches
from flatvars.kernels.rules import Rule

# What returns nothing but a way to do it again.
RESULTS = ("None", "Again")
LAUNCHES = {
    name
    for protocol in (Launches, Compiler)
    for name, method in vars(protocol).items()
    if inspect.isfunction(method) and not name.startswith("_")
    if inspect.signature(method).return_annotation in RESULTS
}
MATRICES, VECTORS = "2x3x5", "3x40"
# What a rule is compiled for to see whether it compiles: no launch.
CHECK = "check"


@dataclass
class Seen:
    """What ran: launches, gathering by its ways, functions of rules, formats."""

    launches: set[str] = field(default_factory=set)
    gathered: set[tuple[bool, bool]] = field(default_factory=set)
    rules: set[Any] = field(default_factory=set)
    formats: set[Format | None] = field(default_factory=set)
    observed: bool = False


def function_of(rule: Rule) -> Any:
    """The mathematics that options were put around: what is compiled, under whatever name."""
    while rule.made is not None:
        rule = rule.made[1][0]
    return rule.function


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Notes launches in the place of making them."""
    found = Seen()

    def note(name: str) -> Any:
        def launch(*args: Any, **kwargs: Any) -> Any:
            found.launches.add(name)
            found.rules |= {function_of(arg) for arg in args if isinstance(arg, Rule)}
            stored = [one for arg in args for one in (arg if isinstance(arg, list) else [arg])]
            for one in stored:
                if isinstance(one, Stored):
                    found.formats.add(formats.STOCHASTIC if one.at_random else one.format)
            found.observed |= any(getattr(arg, "observed", None) is not None for arg in args)
            if name == "accumulate":
                found.gathered.add((args[2] is not None, kwargs.get("add", False)))
            return lambda norm: None  # once more

        return launch

    for name in LAUNCHES:
        monkeypatch.setattr(cpu_launches if name == "fill" else cpu_launches.CpuLaunches, name, note(name))
    return found


def run(cell: Cell) -> None:
    """A cell as it is timed and looked at, on a few elements."""
    small = replace(cell, on=MATRICES if all(len(shape) == 2 for shape in cell.workload.shapes) else VECTORS)
    contender = FLATVARS.cases["tail" if cell.case == "train" else cell.case](small, "cpu")
    for _ in range(2):  # what is added needs something to be added to
        contender.prepare()
        contender.run()
    for kept in contender.keep:
        results = getattr(kept, "results", None)
        assert results is None or len(results) == len(small.workload.shapes)
    contender.close()


def kernel_files(package: Any) -> set[str]:
    """Files of Triton's with a kernel of their own."""
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        names = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        own = [value for name, value in names.items() if name.endswith("_kernel")]
        if any(value.fn.__module__.endswith(f".{module.name}") for value in own):
            found.add(module.name)
    return found - {CHECK}


def test_both_compilers_have_a_file_for_every_launch() -> None:
    pytest.importorskip("triton")
    files = kernel_files(importlib.import_module("flatvars.kernels.triton"))
    assert files == LAUNCHES
    assert files <= {module.name for module in pkgutil.iter_modules(flatvars.kernels.cpu.__path__)}
    for package in ("cpu", "triton"):
        launches = importlib.import_module(f"flatvars.kernels.{package}.launches")
        kind = next(value for name, value in vars(launches).items() if name.endswith("Launches"))
        assert all(hasattr(launches if name == "fill" else kind, name) for name in LAUNCHES)


@pytest.mark.filterwarnings("default")  # of torch's optimizers, which depend on its version
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_quick_run_covers_every_kernel_rule_and_format(device: str, seen: Seen) -> None:
    for cell in quick_cells(device):
        run(cell)
    assert seen.launches == LAUNCHES
    assert seen.gathered >= {(False, False), (True, False), (True, True)}
    assert seen.rules >= {function_of(rule) for rule in vars(rules).values() if isinstance(rule, Rule)}
    assert seen.formats >= {known for known in vars(formats).values() if isinstance(known, Format)}
    assert seen.observed


def test_every_optimizer_has_a_cell() -> None:
    cells = {cell.optimizer for cell in quick_cells("cpu") if cell.optimizer}
    assert cells == {*STATES, *FAMILY, *BEYOND}
    classes = {name for name in fv.optim.__all__ if isinstance(getattr(fv.optim, name), type)}
    optimizers = {name for name in classes if issubclass(getattr(fv.optim, name), torch.optim.Optimizer)}
    named = {(OUR_NAMES | TORCH_NAMES)[name][0] for name in cells}
    assert named == optimizers - {"Optimizer", "RuleOptimizer"}
