"""The package: what importing it needs, what a wheel holds, and that the README tells the truth."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import flatvars as fv

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """What code prints in a process of its own: which modules are imported is a process's affair."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.mark.process
def test_import_and_train_without_triton() -> None:
    blocked = "import sys; sys.modules['triton'] = None\n"
    out = run(
        blocked
        + "import torch, flatvars as fv\n"
        + "model = torch.nn.Linear(3, 2); store = fv.VarStore.from_module(model)\n"
        + "for make in (fv.optim.SGD, fv.optim.Adam, fv.optim.AdamW, fv.optim.RMSprop, fv.optim.Lion):\n"
        + "    optimizer = make(store, lr=0.1); model(torch.ones(1, 3)).sum().backward(); optimizer.step()\n"
        + "    optimizer.zero_grad()\n"
        + "store.check(); print('trained')\n"
    )
    assert out == "trained\n"


@pytest.mark.process
def test_importing_imports_no_compiler() -> None:
    names = ("triton", "numba", "kernels")
    assert run(f"import sys, flatvars; print([name for name in {names} if name in sys.modules])") == "[]\n"


def test_nothing_imports_the_bare_name_kernels() -> None:
    pattern = re.compile(r"^\s*(import kernels\b|from kernels\b)", re.MULTILINE)
    sources = [p for folder in ("flatvars", "kernels", "tests", "bench") for p in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 40
    assert [str(p) for p in sources if pattern.search(p.read_text())] == []


def test_kernels_is_a_tracked_link() -> None:
    link = ROOT / "flatvars" / "kernels"
    assert link.is_symlink()
    assert str(link.readlink()) == "../kernels"


@pytest.mark.process
def test_a_wheel_holds_every_file_once(tmp_path: Path) -> None:
    # A copy: building in the checkout would leave a folder behind, whose stale files the next wheel takes in.
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "bench")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    library = {str(p.relative_to(tree)) for p in (tree / "flatvars").rglob("*.py") if "kernels" not in p.parts}
    kernels = {f"flatvars/{p.relative_to(tree)}" for p in (tree / "kernels").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == library | kernels
    assert len(names) == len(set(names))
    assert "flatvars/py.typed" in names
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as file:
        assert "flatvars = flatvars.cli:main" in file.read(entry_points).decode()
    assert wheel.name.startswith(f"flatvars-{fv.__version__}-")


def printed(example: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints, run in this process as a script of its own."""
    exec(compile(example, "example", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = code_blocks(ROOT / "README.md", "python")
    out = printed(example, capsys)
    loss, norm = re.match(r"loss (\S+), gradient norm (\S+), 6 variables", out).groups()  # type: ignore[union-attr]
    assert float(loss) < 2.0
    assert 0.0 < float(norm) < 100.0


def test_the_loop_of_the_readme_is_torchs_with_two_lines_changed() -> None:
    (lines,) = (block.splitlines() for block in code_blocks(ROOT / "README.md", "diff"))
    loops = {sign: "\n".join(line[1:] for line in lines if line[0] in (" ", sign)) for sign in "-+"}
    values = []
    for sign, loop in loops.items():
        torch.manual_seed(0)
        model = Lossy(3, 2)
        names = {"torch": torch, "fv": fv, "model": model, "loader": torch.randn(4, 5, 3).unbind()}
        exec(compile(loop, f"the loop with {sign}", "exec"), names)
        values.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)


class Lossy(torch.nn.Linear):
    """A model whose output has a loss, as those of transformers."""

    def forward(self, input: torch.Tensor) -> Any:
        return SimpleNamespace(loss=super().forward(input).square().mean())


def test_the_rule_of_the_kernels_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, *_ = code_blocks(ROOT / "kernels" / "README.md", "python")
    script = tmp_path / "own_rule.py"  # Triton reads a rule's source from its file
    use = "model(torch.ones(1, 4)).sum().backward()\nbefore = model.bias.detach().clone()\noptimizer.step()\n"
    script.write_text(example + use + "print(bool((model.bias - before + 1e-3).abs().max() < 1e-7))\n")
    runpy.run_path(str(script))
    assert capsys.readouterr().out == "True\n"


def test_the_stages_of_the_kernels_page_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each example prints what its last line says."""
    _, *examples = code_blocks(ROOT / "kernels" / "README.md", "python")
    assert examples
    for number, example in enumerate(examples):
        script = tmp_path / f"stage_{number}.py"
        script.write_text(example)
        runpy.run_path(str(script))
        assert capsys.readouterr().out == example.rstrip().rpartition("  # ")[2] + "\n"


def test_ci_calls_the_test_command_of_the_readme() -> None:
    commands = [line for block in code_blocks(ROOT / "README.md", "") for line in block.splitlines()]
    (test_command,) = [line for line in commands if "-m tests" in line]
    assert test_command in (ROOT / ".ci" / "run").read_text()


PAGES = [
    "README.md",
    "flatvars/README.md",
    "flatvars/GUIDE.md",
    "flatvars/checkpoint/README.md",
    "kernels/README.md",
    "tests/README.md",
    "bench/README.md",
]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_of_pages_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, part = target.partition("#")
        if "://" in target:
            continue
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if part and path.is_file() else []
        anchors = [re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles]
        if not path.exists() or (part and part not in anchors):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`([\w./-]+\.py|[\w-]+/)`", text))
    folder = (ROOT / page).parent
    missing = [name for name in named if not any((base / name).exists() for base in (folder, ROOT))]
    assert named or page == "README.md"  # which has links
    assert missing == []
