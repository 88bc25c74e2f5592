"""flatvars/GUIDE.md: every recipe runs as it stands, and prints what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "flatvars" / "GUIDE.md").read_text(encoding="utf-8")
RECIPES = [
    (f"{title.strip()} {number}".removesuffix(" 0"), code)
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", body, re.DOTALL))
]


def promised(code: str) -> list[str]:
    """What the lines that print say they print; "..." stands for more."""
    return re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)


def test_there_are_recipes_and_all_say_what_they_do() -> None:
    assert len(RECIPES) > 9
    assert all(promised(code) for _, code in RECIPES)


@pytest.mark.parametrize(("title", "code"), RECIPES, ids=[title for title, _ in RECIPES])
def test_a_recipe_runs_as_it_stands(
    title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "recipe.py"  # a file: Triton reads a rule's source
    script.write_text(code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    for line in promised(code):
        begin, more, _ = line.partition("...")
        wanted = r"\s+".join(map(re.escape, begin.split())) + ("" if more else r"\s*$")
        assert re.search(f"^{wanted}", out, re.MULTILINE), f"{title}: {line!r} is not what it prints:\n{out}"


def test_the_table_of_contents_is_complete() -> None:
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    listed = re.findall(r"^- \[.*\]\(#(.*)\)$", PAGE, re.MULTILINE)
    assert listed == [title.lower().replace(" ", "-") for title in titles]
