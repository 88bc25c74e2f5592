"""The package: what importing it needs, what a wheel holds, and that the README tells the truth."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_the_examples_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    adopting, by_name, _, average, muon = code_blocks(ROOT / "README.md", "python")
    assert "layer1.0.weight" in printed(by_name, capsys)
    out = printed(adopting, capsys)
    loss, norm = re.match(r"loss (\S+), gradient norm (\S+), 6 variables", out).groups()  # type: ignore[union-attr]
    assert float(loss) < 2.0
    assert 0.0 < float(norm) < 100.0
    assert re.match(r"loss of the average \d", printed(average, capsys))
    out = printed(muon, capsys)
    assert re.search(r"group 0: Muon.*\n  1.weight .*\n  3.weight .*\ngroup 1: AdamW", out)
    assert "0.weight  (64, 32), embedding" in out


def test_the_checkpoints_of_the_readme_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, example, *_ = code_blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    assert printed(example, capsys) == "equal: True, step 20\n"
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


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


PAGES = ["README.md", "flatvars/README.md", "flatvars/checkpoint/README.md", "kernels/README.md", "bench/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`([\w./-]+\.py|[\w-]+/)`", text))
    folder = (ROOT / page).parent
    missing = [name for name in named if not any((base / name).exists() for base in (folder, ROOT))]
    assert named
    assert missing == []
