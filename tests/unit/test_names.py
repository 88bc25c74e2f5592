"""Names mean one thing: what a module of the library defines, no other module defines too."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Four commands with one interface; and one act at three depths: for names, for streams, for a compiler.
SHARED = {"NAME", "add_arguments", "run", "fill_"}


def defined(path: Path) -> set[str]:
    """Public classes, functions and constants of a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def repeated(paths: list[Path], shared: set[str]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for name in defined(path) - shared:
            places[name].append(str(path.relative_to(ROOT)))
    return {name: where for name, where in places.items() if len(where) > 1}


def library() -> list[Path]:
    return [path for path in (ROOT / "flatvars").rglob("*.py") if "kernels" not in path.parts]


def test_no_two_modules_of_the_library_define_one_name() -> None:
    assert len(library()) > 80
    assert repeated(library(), SHARED) == {}


def test_no_class_of_the_kernels_is_called_like_one_of_the_library() -> None:
    def classes(paths: list[Path]) -> set[str]:
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
        return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}

    kernels = list((ROOT / "kernels").rglob("*.py"))
    assert len(kernels) > 20
    assert classes(kernels) & classes(library()) == set()
