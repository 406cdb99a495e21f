"""YAML whose errors name a line: nodes instead of values, without duplicate keys, anchors and surprises.

A scalar keeps the text of the file: ``2e-5`` (which YAML 1.1 reads as a string), ``no`` (as False) and
``1_0`` (as 10) reach an option exactly as they would on the command line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsebert.file_types import require_regular

# A grid of options is small: a larger file is another one.
_MOST_BYTES = 2**20
_MOST_SHOWN = 60
_NULLS = ("", "~", "null")


@dataclass(frozen=True)
class Node:
    """A value of a YAML file.

    Attributes:
        file: The file.
        line: Line of the value, from 1; in a mapping, of its key.
        value: Text of a scalar, None for null, a list of nodes, or nodes by key.
    """

    file: Path
    line: int
    value: str | list[Node] | dict[str, Node] | None

    def error(self, problem: str) -> ValueError:
        """Return the error to raise for this value, with file and line."""
        return ValueError(f"{self.file}:{self.line}: {problem}")

    @property
    def kind(self) -> str:
        """The kind of the value, and a scalar's text, for messages."""
        if isinstance(self.value, str):
            return repr(self.value[:_MOST_SHOWN])
        return {list: "a list", dict: "a mapping", type(None): "nothing"}[type(self.value)]

    def mapping(self, what: str) -> dict[str, Node]:
        """Return the nodes by key. Raises ValueError unless the value is a mapping."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping (name: ...), got {self.kind}")
        return self.value

    def items(self, what: str) -> list[Node]:
        """Return the nodes of a list. Raises ValueError unless the value is a list."""
        if not isinstance(self.value, list):
            raise self.error(f"{what} must be a list ([...]), got {self.kind}")
        return self.value

    def text(self, what: str) -> str:
        """Return a text. Raises ValueError unless the value is a scalar that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"{what} must be a text, got {self.kind}")
        return self.value

    def line_of_text(self, what: str) -> str:
        """Return a text of one line. Raises ValueError for another value."""
        text = self.text(what).strip()
        if "\n" in text:
            raise self.error(f"{what} must be one line")
        return text

    def number(self, what: str) -> float:
        """Return a finite number. Raises ValueError for another value."""
        try:
            number = float(self.text(what))
        except ValueError:
            raise self.error(f"{what} must be a number, got {self.kind}") from None
        if number != number or number in (float("inf"), float("-inf")):
            raise self.error(f"{what} must be a finite number, got {self.kind}")
        return number

    def whole_number(self, what: str) -> int:
        """Return a whole number of at least 0. Raises ValueError for another value."""
        text = self.text(what)
        if not text.isdecimal():
            raise self.error(f"{what} must be a whole number, got {self.kind}")
        return int(text)


def read_yaml(path: str | os.PathLike[str]) -> Node:
    """Read a YAML file of one document.

    Raises:
        ValueError: In one line, with file and line: the file is unreadable, too large, or not YAML; it holds
            no document or several; a key is not a text or stands twice; or it uses anchors or tags.
    """
    file = Path(path)
    require_regular(file)
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file} is larger than {_MOST_BYTES // 1024} KiB: not an experiment")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"cannot read {file}: not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    try:
        _require_plain(file, text)
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{file}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{file} is not an experiment: it is nested too deeply") from None
    if document is None:
        raise ValueError(f"{file} is empty: expected the description of an experiment")
    return _node(file, document)


def _require_plain(file: Path, text: str) -> None:
    """Raise ValueError for anchors, aliases and tags: an experiment says everything where it stands."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{file}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"{where}: anchors and aliases are not supported: write the value again")
        if getattr(event, "tag", None):
            raise ValueError(f"{where}: tags are not supported: omit {event.tag}")


def _node(file: Path, node: Any, line: int | None = None) -> Node:
    line = node.start_mark.line + 1 if line is None else line
    if isinstance(node, yaml.SequenceNode):
        return Node(file, line, [_node(file, each) for each in node.value])
    if isinstance(node, yaml.MappingNode):
        return Node(file, line, dict(_pairs(file, node)))
    null = node.style is None and node.value.lower() in _NULLS
    return Node(file, line, None if null else node.value)


def _pairs(file: Path, node: Any) -> Iterator[tuple[str, Node]]:
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{file}:{line}: a key must be a text")
        if key.value in seen:
            raise ValueError(
                f"{file}:{line}: {key.value!r} stands twice, first in line {seen[key.value]}: keep one"
            )
        seen[key.value] = line
        yield key.value, _node(file, value, line)
