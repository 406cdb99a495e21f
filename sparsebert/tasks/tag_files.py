"""Words with a tag each from files: columns as of CoNLL, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsebert.json_object import load_json
from sparsebert.tasks.examples import Tagged
from sparsebert.tasks.tables import lines_of, read_text, shortened, stripped

# A line of the CoNLL-2003 files that separates documents.
_DOCUMENT = "-DOCSTART-"
_JSON_LINES = (".jsonl", ".ndjson", ".json")


class TaggedLine(NamedTuple):
    """The words and tags of a text, as written, and the line on which they begin."""

    line: int
    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_tags(path: Path, words: str = "tokens", tags: str = "tags") -> list[TaggedLine]:
    """Read texts of words with tags.

    Args:
        path: ``.jsonl``, ``.ndjson`` or ``.json`` with an object a line, which holds a list of words and one
            of tags; or any other ending, with columns: on each line a word in the first column and its tag in
            the last one, between blanks or tabs, and an empty line after each text. Lines of CoNLL that begin
            with ``-DOCSTART-`` are skipped.
        words: Key of the list of words.
        tags: Key of the list of tags.

    Raises:
        ValueError: With file and line, for a line of another form, an empty word, or lists of unequal length.
        FileNotFoundError: If ``path`` does not exist.
    """
    lines = enumerate(lines_of(read_text(path)), 1)
    if path.suffix.lower() in _JSON_LINES:
        return [_from_json(f"{path}:{at}", at, line, words, tags) for at, line in lines if stripped(line)]
    return list(_from_columns(path, lines))


def tagged(texts: Sequence[TaggedLine], labels: Sequence[str], path: Path) -> list[Tagged]:
    """Return texts with the indices of their tags. Raises ValueError, with file and line, for other tags."""
    indices = {label: index for index, label in enumerate(labels)}
    examples = []
    for text in texts:
        if unknown := [tag for tag in text.tags if tag not in indices]:
            raise ValueError(
                f"{path}:{text.line}: tags must be among {shortened(labels)}, got {unknown[0]!r}"
            )
        examples.append(Tagged(text.words, tuple(indices[tag] for tag in text.tags)))
    return examples


def _from_columns(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[TaggedLine]:
    begin = 0
    words: list[str] = []
    tags: list[str] = []
    for at, line in (*lines, (0, "")):
        columns = line.split()
        if columns and columns[0] == _DOCUMENT:
            continue
        if not columns:
            if words:
                yield TaggedLine(begin, tuple(words), tuple(tags))
            begin, words, tags = 0, [], []
            continue
        if len(columns) < 2:
            raise ValueError(
                f"{path}:{at}: a line must hold a word and, in the last column, its tag, got {line[:40]!r}"
            )
        begin = begin or at
        words.append(columns[0])
        tags.append(columns[-1])


def _from_json(place: str, at: int, line: str, words: str, tags: str) -> TaggedLine:
    try:
        row: Any = load_json(line)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(f"{place}: not JSON: {reason}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}")
    for key in (words, tags):
        values = row.get(key)
        if not isinstance(values, list) or not values or not all(isinstance(each, str) for each in values):
            raise ValueError(
                f"{place}: {key!r} must be a list of at least one text; the keys are {', '.join(row)}"
            )
    if len(row[words]) != len(row[tags]):
        raise ValueError(
            f"{place}: there must be a tag for each word, got {len(row[words])} words and "
            f"{len(row[tags])} tags"
        )
    if not all(map(stripped, row[words])):
        raise ValueError(f"{place}: word {list(map(stripped, row[words])).index('') + 1} is empty; remove it")
    return TaggedLine(at, tuple(row[words]), tuple(row[tags]))
