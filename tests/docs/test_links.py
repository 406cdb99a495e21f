"""Every link and every path that the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, PAGES, ROOT, name, prose

# Folders that a path of the repository begins with.
TOPS = ("sparsebert", "kernels", "docs", "tests", "benchmarks")
# Folders that short paths are relative to, in pages that talk of one package.
HOMES = (
    "",
    *("sparsebert", "sparsebert/pruning", "sparsebert/lottery"),
    *(f"kernels/sparsebert_kernels{below}" for below in ("", "/cuda", "/cpu", "/cpu/src")),
)
# Written by `make gpu` on a machine with a GPU.
GENERATED = ("kernels/sparsebert_kernels/configs/",)
PATH = re.compile(r"`((?:\.\./)?[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|h|cpp|md|jsonl|json|html|toml|cff)))`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, heading = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{name(document)}: {target} does not exist"
        assert not heading or heading in anchors(file), f"{name(document)}: no heading {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_paths_of_the_repository_exist(document: Path) -> None:
    for path in PATH.findall(prose(document)):
        if path.split("/")[0] in TOPS and "/" in path:
            assert (ROOT / path).exists() or path in GENERATED, f"{name(document)}: {path} does not exist"


def test_the_rooms_of_the_architecture_exist() -> None:
    for path in PATH.findall((ROOT / "docs" / "architecture.md").read_text()):
        assert any((ROOT / home / path).exists() for home in HOMES), path


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        entry = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert entry == "index" or entry in index.split() or f"{Path(entry).parent}/*" in index, entry


def test_the_readme_stays_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 10_000


def anchors(document: Path) -> set[str]:
    """Return the ids of a document's headings, as GitHub and MyST derive them, and its explicit targets."""
    text = document.read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    derived = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return derived | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
