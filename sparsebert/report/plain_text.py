"""Names that users gave, as text: without control characters, and not read as Markdown or mathematics."""

from __future__ import annotations

import re

# Control characters but line ends, marks that change the direction of all that follows, and what is no
# character: they move a terminal's cursor, hide text, and end an SVG or the encoding of a file.
_CONTROL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_SPACES = "\t\v\f\r\x85\u2028\u2029"
# Characters that Markdown, as GitHub reads it, does not show as they are: escapes, code, deleted text,
# emphasis that is not amid a word or between spaces, links, elements, and entities.
_MARKDOWN = re.compile(
    r"""[\\`~|]
    |(?<![^\W_])_|_(?![^\W_])
    |\*(?!\s|$)|(?<=\S)\*
    |\](?=[(\[])
    |<(?=[A-Za-z/!?])
    |&(?=\#?\w+;)""",
    re.VERBOSE,
)
# A dollar sign that does not already have a backslash.
_DOLLAR = re.compile(r"(?<!\\)\$")


def printable(text: str) -> str:
    """Return a text with blanks and escapes, such as ``\\x1b``, in place of control characters."""
    return text if text.isprintable() else _CONTROL.sub(_shown, text)


def markdown_text(text: str) -> str:
    """Return a text for one line of Markdown that shows it as it is."""
    line = _MARKDOWN.sub(r"\\\g<0>", " ".join(printable(text).splitlines()))
    # GitHub sets what stands between two as a formula.
    return line.replace("$", r"\$") if line.count("$") > 1 else line


def figure_text(text: str) -> str:
    """Return a text for a figure of matplotlib, which reads dollar signs as mathematics.

    As a label it stands in the legend: matplotlib leaves those out that begin with an underscore.
    """
    shown = _DOLLAR.sub(r"\\$", printable(text))
    return f" {shown}" if shown.startswith("_") else shown


def _shown(match: re.Match[str]) -> str:
    character = match[0]
    return " " if character in _SPACES else character.encode("unicode_escape").decode("ascii")
