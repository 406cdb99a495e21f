"""Tables in documents, made of result files: `python -m sparsebert.report.render_docs --check | --write`.

A table stands between two markers and is never edited by hand:

    <!-- results: layers benchmarks/results/layers.jsonl -->
    <!-- /results -->

The first word is the kind of table (`sparsebert.report.sections.KINDS`), the second the result file, relative
to the document. The kind `text` includes a file verbatim, such as the output of a command.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from sparsebert.atomic import write_text
from sparsebert.report.sections import KINDS
from sparsebert.results import read

DOCUMENTS = (
    Path("README.md"),
    Path("docs/fastest-form.md"),
    Path("benchmarks/RESULTS.md"),
    Path("kernels/README.md"),
)
BLOCK = re.compile(
    r"(<!-- results: (?P<kind>\S+) (?P<file>\S+) -->\n)(?P<body>.*?)(<!-- /results -->)", re.DOTALL
)


def render(text: str, folder: Path) -> str:
    """Return ``text`` with every marked block rendered from its result file, relative to ``folder``.

    Raises:
        ValueError: A kind is unknown, or a file cannot be read or has no records of the kind.
    """

    def fill(match: re.Match[str]) -> str:
        kind, file = match["kind"], match["file"]
        if kind == "text":
            return (
                f"{match[1]}```text\n{(folder / file).read_text(encoding='utf-8').strip()}\n```\n{match[5]}"
            )
        if kind not in KINDS:
            raise ValueError(f"unknown table {kind!r} in a results marker; known: text, {', '.join(KINDS)}")
        tables = KINDS[kind].tables(read(folder / file))
        if not tables:
            raise ValueError(f"{file} holds no records for a table of kind {kind!r}")
        body = "\n\n".join(table.markdown() for table in tables)
        return f"{match[1]}{body}\n{match[5]}"

    return BLOCK.sub(fill, text)


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0 if all is up to date, 1 if ``--check`` finds a stale table, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsebert.report.render_docs", description=__doc__.split("\n")[0]
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="fail if a table differs from its result file")
    action.add_argument("--write", action="store_true", help="update the tables")
    parser.add_argument("documents", nargs="*", default=DOCUMENTS, type=Path)
    options = parser.parse_args(arguments)
    try:
        texts = {document: document.read_text(encoding="utf-8") for document in options.documents}
        fresh = {document: render(text, document.parent) for document, text in texts.items()}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [document for document, text in texts.items() if fresh[document] != text]
    for document in stale:
        if options.check:
            print(f"{document}: tables differ from the result files; run with --write", file=sys.stderr)
        else:
            write_text(document, fresh[document])
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
