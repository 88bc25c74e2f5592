"""Imports run down the table of flatvars/README.md, those for typing too: the contracts of pyproject.toml."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("importlinter", reason="import-linter is not installed: pip install -e '.[test]'")


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of a checkout in a process of its own, since the linter imports the package by its name."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_imports_keep_their_contracts() -> None:
    done = contracts(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Imports run down KEPT", done.stdout)
    assert re.search(r"Contracts: 4 kept, 0 broken", done.stdout)


def test_an_import_that_runs_up_is_found(tmp_path: Path) -> None:
    """Also one for typing, and one through the link to kernels/."""
    for path in ("flatvars/__init__.py", "kernels/__init__.py", "flatvars/memory/__init__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "flatvars" / "kernels").symlink_to("../kernels")
    (tmp_path / "flatvars" / "errors.py").write_text("from .kernels import rules\n")
    rules = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..errors import FlatvarsError\n"
    (tmp_path / "kernels" / "rules.py").write_text(rules)
    config = (
        '[tool.importlinter]\nroot_packages = ["flatvars"]\nexclude_type_checking_imports = false\n'
        '[[tool.importlinter.contracts]]\nname = "Imports run down"\ntype = "layers"\n'
        'containers = ["flatvars"]\nlayers = ["memory", "errors", "kernels"]\n'
    )
    (tmp_path / "pyproject.toml").write_text(config)
    done = contracts(tmp_path)
    assert done.returncode == 1
    assert "flatvars.kernels.rules -> flatvars.errors" in done.stdout


def test_the_table_of_the_library_is_the_contract() -> None:
    (block,) = re.findall(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    layers = re.findall(r'"(\w+)"', block)
    rows = re.findall(r"^\| (.+?) \|", (ROOT / "flatvars" / "README.md").read_text(), re.MULTILINE)
    named = [name.removesuffix("/").removesuffix(".py") for row in rows for name in re.findall(r"`([\w.]+/?)`", row)]
    assert [*named, "__main__"] == layers[::-1]
    top = {path.stem if path.is_file() else path.name for path in (ROOT / "flatvars").iterdir()}
    assert set(layers) <= top


def test_few_modules_lie_at_the_top() -> None:
    assert len(list((ROOT / "flatvars").glob("*.py"))) <= 6
