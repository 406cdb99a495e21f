"""The glossary of docs/architecture.md: in order, of a size to be read, and of words that the code uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "architecture.md").read_text().partition("(glossary)=")[2]
TERMS = [row.split("|")[1].strip() for row in re.findall(r"^\| (?!term|---).*$", SECTION, re.MULTILINE)]


def test_the_glossary_is_alphabetical() -> None:
    assert sorted(TERMS) == TERMS


def test_the_glossary_has_25_to_35_terms() -> None:
    assert 25 <= len(TERMS) <= 35
    assert len(set(TERMS)) == len(TERMS)


@pytest.fixture(scope="module")
def code() -> str:
    suffixes = (".py", ".h", ".cpp")
    files = [
        file
        for top in ("sparsebert", "kernels")
        for file in (ROOT / top).rglob("*")
        if file.suffix in suffixes
    ]
    return "\n".join(file.read_text() for file in files).lower()


@pytest.mark.parametrize("term", TERMS)
def test_the_code_uses_the_term(term: str, code: str) -> None:
    spelling = re.escape(term.lower()).replace(r"\ ", r"[ _-]?")
    assert re.search(rf"(?<![a-z]){spelling}", code)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_has_one_meaning_in_one_sentence_or_two(term: str) -> None:
    (meaning,) = re.findall(rf"^\| {re.escape(term)} \| (.*) \|$", SECTION, re.MULTILINE)
    assert len(meaning.split()) <= 30
