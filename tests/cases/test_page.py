"""The page of cases names tests that exist, and has rows for every case."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+(?:::\w+)?)`", PAGE)))


def functions(path: Path) -> set[str]:
    """Names of the tests of a module, those of a class as ``Class::test``."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
    return names


@pytest.mark.parametrize("test", TESTS)
def test_a_test_that_the_page_names_exists(test: str) -> None:
    path, name = test.split("::", maxsplit=1)
    assert name in functions(ROOT / path)


def test_every_case_has_a_row_with_a_test() -> None:
    cases = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    without = [case.splitlines()[0] for case in cases if "`tests/" not in case]
    assert without == []
    assert len(cases) == 29
