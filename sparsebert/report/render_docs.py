"""Tables and pictures in documents: `python -m sparsebert.report.render_docs --check | --write`.

Both are made of result files. A table stands between two markers and is never edited by hand:

    <!-- results: layers benchmarks/results/layers.jsonl -->
    <!-- /results -->

The first word is the kind of table (`sparsebert.report.sections.KINDS`), the second the result file, relative
to the document. The kind `text` includes a file verbatim, such as the output of a command.

A picture stands between markers of its own, which name the kind, one or more result files, and the file that
`--write` draws:

    <!-- picture: front results/lottery.jsonl results/arena.jsonl results/front.png -->
    <!-- /picture -->

Several pictures of a kind are written to `front.png`, `front-2.png` and so on. `--check` compares their
texts, which hold the figures of their message, and does not draw.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from sparsebert.atomic import replacing, write_text
from sparsebert.report.picture import Picture
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
PICTURES = re.compile(
    r"(<!-- picture: (?P<kind>\S+) (?P<files>\S[^\n]*?) (?P<target>\S+\.png) -->\n)"
    r"(?P<body>.*?)(<!-- /picture -->)",
    re.DOTALL,
)
# Colours of a PNG in a repository: plots have few, and a palette halves the file.
_COLOURS = 256


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

    def show(match: re.Match[str]) -> str:
        body = "\n\n".join(
            f"![{_plain(picture.alt)}]({target})\n\n*{picture.title}.* {picture.caption}".rstrip()
            for target, picture in _pictures(match, folder)
        )
        return f"{match[1]}{body}\n{match[6]}"

    return PICTURES.sub(show, BLOCK.sub(fill, text))


def pictures(text: str, folder: Path) -> dict[Path, Picture]:
    """Return the pictures of all marked blocks by the file to draw; raises like ``render``."""
    return {
        folder / target: picture
        for match in PICTURES.finditer(text)
        for target, picture in _pictures(match, folder)
    }


def _pictures(match: re.Match[str], folder: Path) -> list[tuple[str, Picture]]:
    """Return the pictures of a block with the names of their files."""
    kind, files, target = match["kind"], match["files"].split(), Path(match["target"])
    if kind not in KINDS:
        raise ValueError(f"unknown picture {kind!r} in a results marker; known: {', '.join(KINDS)}")
    made = KINDS[kind].pictures([row for file in files for row in read(folder / file)])
    if not made:
        raise ValueError(f"{', '.join(files)} hold no records for a picture of kind {kind!r}")
    names = [target, *(target.with_stem(f"{target.stem}-{number}") for number in range(2, len(made) + 1))]
    return [(name.as_posix(), picture) for name, picture in zip(names, made, strict=True)]


def _plain(text: str) -> str:
    """Return text for the alternative text of a Markdown image."""
    return text.replace("[", "(").replace("]", ")")


def small_png(content: bytes) -> bytes:
    """Return a PNG with a palette of colours, without metadata."""
    from PIL import Image

    target = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        palette = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        palette.save(target, format="png", optimize=True)
    return target.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if all is up to date, 1 if ``--check`` finds a stale block, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m sparsebert.report.render_docs", description=__doc__.split("\n")[0]
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--check",
        action="store_true",
        help="fail if a block is stale or a picture missing",
    )
    action.add_argument("--write", action="store_true", help="update the tables and draw the pictures")
    parser.add_argument("documents", nargs="*", default=DOCUMENTS, type=Path)
    options = parser.parse_args(arguments)
    try:
        texts = {document: document.read_text(encoding="utf-8") for document in options.documents}
        fresh = {document: render(text, document.parent) for document, text in texts.items()}
        drawn = {
            path: picture
            for document, text in texts.items()
            for path, picture in pictures(text, document.parent).items()
        }
        if options.write:
            for path, picture in drawn.items():
                with replacing(path) as temporary:
                    temporary.write_bytes(small_png(picture.png()))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [document for document, text in texts.items() if fresh[document] != text]
    for document in stale:
        if options.check:
            print(f"{document}: blocks differ from the result files; run with --write", file=sys.stderr)
        else:
            write_text(document, fresh[document])
    missing = [path for path in drawn if options.check and not path.exists()]
    for path in missing:
        print(f"{path}: not drawn; run with --write", file=sys.stderr)
    return int(options.check and bool(stale or missing))


if __name__ == "__main__":
    sys.exit(main())
