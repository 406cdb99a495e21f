"""Rules that plant faults in C++ sources, line by line on code without comments and texts.

Binary operators are told from pointers, references and templates by the blanks around them, which the layout
of our sources keeps. Preprocessor lines, declarations of constants and headers of functions are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants.edit import Edit

OPERATORS = {
    " < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > ", " == ": " != ", " != ": " == ",
    " + ": " - ", " - ": " + ", " * ": " + ", " / ": " * ", " % ": " / ", " << ": " >> ", " >> ": " << ",
    " && ": " || ", " || ": " && ", " & ": " | ", " | ": " & ",
}  # fmt: skip
COMPARISONS = (" < ", " <= ", " > ", " >= ", " == ", " != ")
OPERATOR = re.compile(r" (?:<=|>=|==|!=|<<|>>|&&|\|\||[-+*/%<>&|]) ")
OFFSET = re.compile(r"(?<=[\[+\-] )\d+(?=[\]);, ])|(?<=\[)\d+(?=\])|(?<== )0(?=;)")
ACCUMULATION = re.compile(r" \+= ")
STATEMENT = re.compile(r"^\s*(?:[\w:]+(?:<[^;]*>)?\([^;]*\)|[\w.\->\[\]]+ [-+*|]?= [^;]*);$")
ARRAY = re.compile(r"^\s*(?!return\b)(?:alignas\(\d+\) )?[\w:]+ \w+\[[^;=]*\]")
LEFT_ALONE = re.compile(
    r"^\s*(?:#|template|static_assert|using|namespace|constexpr|typedef|inline|SB_INLINE|struct)"
)
# The first line of a function: at most one level deep, a name before a parenthesis, no end of a statement.
FUNCTION = re.compile(r"^(?:  )?(?!(?:for|if|while|switch|return|else)\b)[\w:<>*&, ]+[ *&](\w+)\([^;]*$")


def cpp_edits(source: str) -> Iterator[Edit]:
    """Yield every replacement that the rules find in a C++ source."""
    function, start, in_header, continued = "", 0, False, False
    before = ";"
    for line in _blanked(source).splitlines(keepends=True):
        header = FUNCTION.match(line)
        function = header[1] if header else function
        in_header = bool(header) or in_header
        if function and not (in_header or continued or LEFT_ALONE.match(line)):
            for begin, end, text, rule in _faults(line, is_whole=before.endswith((";", "{", "}", ")"))):
                yield Edit(start + begin, start + end, text, rule, function)
        in_header = in_header and "{" not in line
        continued = line.rstrip().endswith("\\")
        start += len(line)
        before = line.rstrip() or before


def _faults(line: str, is_whole: bool) -> Iterator[tuple[int, int, str, str]]:
    """Yield faults of a line; ``is_whole`` if no statement goes on in it."""
    is_loop = line.lstrip().startswith("for (")
    for match in OPERATOR.finditer(line):
        rule = "comparison" if match[0] in COMPARISONS else "arithmetic"
        yield match.start(), match.end(), OPERATORS[match[0]], rule
    for match in () if ARRAY.match(line) else OFFSET.finditer(line):
        yield match.start(), match.end(), str(int(match[0]) + 1), "offset"
    if not is_loop:  # a loop that counts down does not end
        for match in ACCUMULATION.finditer(line):
            yield match.start(), match.end(), " -= ", "arithmetic"
    code = line.rstrip()
    is_statement = is_whole and STATEMENT.match(code) and code.count("(") == code.count(")")
    if is_statement and not code.lstrip().startswith("return"):
        yield len(code) - len(code.lstrip()), len(code), ";", "dropped statement"


def _blanked(source: str) -> str:
    """Return the source with comments, texts and characters replaced by as many dots or blanks."""

    def blank(match: re.Match[str]) -> str:
        filling = " " if match[0].startswith("/") else "."
        return re.sub(r"[^\n]", filling, match[0])

    return re.sub(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, source, flags=re.DOTALL
    )
