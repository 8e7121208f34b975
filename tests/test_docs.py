"""The examples run: the doctests of every module, and the Python blocks of README.md and docs/*.md, top to bottom."""

from __future__ import annotations

import doctest
import importlib
import io
import pkgutil
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convkern

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    {
        "convkern",
        *(info.name for info in pkgutil.walk_packages(convkern.__path__, "convkern.") if "__main__" not in info.name),
    }
)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def run_examples(test: doctest.DocTest) -> None:
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=output.write, clear_globs=False)
    assert not runner.failures, output.getvalue()


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs={"np": np}):
        run_examples(test)


def blocks(page: Path) -> list[tuple[int, str]]:
    """The ```python blocks of a page: the line each starts at, and its text."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block.group(1)) for block in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks share their names, as in one session of a reader; those with >>> are compared with what they show."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for line, text in blocks(page):
        if ">>>" in text:
            test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
            run_examples(test)
            names.update(test.globs)
        else:
            exec(compile("\n" * line + text, str(page), "exec"), names)


def test_pages_have_examples() -> None:
    assert len(blocks(ROOT / "README.md")) >= 2 and len(MODULES) > 20
