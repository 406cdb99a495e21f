"""The documents of the project, and the samples in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# Documents whose links and paths must exist besides those of the pages.
ALL = [
    *PAGES,
    *sorted(ROOT.glob("*.md")),
    ROOT / "kernels" / "README.md",
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
DOCUMENTS = list(dict.fromkeys(ALL))


def name(document: Path) -> str:
    """Return the path of a document below the root, as its id in tests."""
    return str(document.relative_to(ROOT))


def blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def prose(document: Path) -> str:
    """Return the text without its code blocks."""
    return re.sub(r"^(```|:::).*?^\1", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_lines(document: Path) -> list[str]:
    """Return the lines of the shell samples, continued ones in one piece, without comments."""
    joined = [re.sub(r" *\\\n *", " ", block) for block in blocks(document, "sh")]
    lines = [line.split(" #")[0].strip() for block in joined for line in block.splitlines()]
    return [line for line in lines if line]


def commands(document: Path) -> list[str]:
    """Return the lines of the shell samples that call sparsebert."""
    return [line for line in shell_lines(document) if line.split()[0] == "sparsebert"]
