"""The options of an experiment's levels (all cells, columns, rows, single cells) and how they combine."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sparsebert.experiments.grid import Value
from sparsebert.experiments.yaml_nodes import Node

# Options that can take the result of another cell: {row: ..., column: ...}.
SOURCES = ("ticket", "start-ticket", "teacher", "model")
# Each level may choose either: the one that it names replaces the other of the levels below.
_ALTERNATIVES = (("steps", "epochs"), ("warmup-steps", "warmup-ratio"))


class TrainOptions(Protocol):
    """The options of ``sparsebert train`` that an experiment may set."""

    @property
    def names(self) -> Collection[str]:
        """Names without dashes."""

    @property
    def flags(self) -> Collection[str]:
        """The names of those that are flags."""

    @property
    def managed(self) -> Mapping[str, str]:
        """Options that belong to a whole sweep, with a hint."""

    def check(self, name: str, value: Value) -> None:
        """Raise ValueError unless the command line takes this value."""


@dataclass(frozen=True)
class CellReference:
    """The result of another cell with the same seed; a column of None is the cell's own column."""

    row: str
    column: str | None


@dataclass(frozen=True)
class Setting:
    """The value of an option, or None to take back what a level below has set; with its place in the file."""

    value: Value | CellReference | None
    node: Node


Settings = Mapping[str, Setting]


def read_settings(nodes: Mapping[str, Node], options: TrainOptions) -> Settings:
    """Read options of ``train``.

    Raises:
        ValueError: In one line, with file and line: an unknown option, one that the sweep itself sets, or a
            value that the command line would refuse.
    """
    return {name: _setting(name, node, options) for name, node in nodes.items()}


def combined(levels: Iterable[Settings]) -> dict[str, Setting]:
    """Return the settings that are in effect; later levels replace the values of earlier ones."""
    result: dict[str, Setting] = {}
    for level in levels:
        for pair in _ALTERNATIVES:
            if any(name in level and level[name].value is not None for name in pair):
                for name in pair:
                    result.pop(name, None)
        result |= level
    return {name: setting for name, setting in result.items() if setting.value not in (None, False)}


def unknown_key(key: str, node: Node, what: str, known: Collection[str]) -> ValueError:
    """Return the error to raise for the unknown key of a value; it offers the nearest, or a short list."""
    nearest = difflib.get_close_matches(key, list(known), n=1)
    if nearest:
        hint = f"; did you mean {nearest[0]!r}?"
    else:
        hint = f"; known: {', '.join(known)}" if len(known) <= 16 else "; see sparsebert train --help"
    return node.error(f"unknown {what} {key!r}{hint}")


def _setting(name: str, node: Node, options: TrainOptions) -> Setting:
    if name in options.managed:
        raise node.error(f"{name!r} cannot be an option of a cell: {options.managed[name]}")
    if name not in options.names:
        raise unknown_key(name, node, "option of sparsebert train", options.names)
    if node.value is None:
        return Setting(None, node)
    if isinstance(node.value, dict) and name in SOURCES:
        return Setting(_reference(name, node), node)
    if not isinstance(node.value, str):
        also = " or {row: ..., column: ...}" if name in SOURCES else ""
        raise node.error(f"{name} must be one value as on the command line{also}, got {node.kind}")
    value: Value = node.value.strip()
    if name in options.flags:
        if value not in ("true", "false"):
            raise node.error(f"{name} is a flag: it must be true or false, got {node.kind}")
        return Setting(value == "true", node)
    try:
        options.check(name, value)
    except ValueError as error:
        raise node.error(str(error)) from None
    return Setting(value, node)


def _reference(name: str, node: Node) -> CellReference:
    parts = node.mapping(name)
    for key, each in parts.items():
        if key not in ("row", "column"):
            raise unknown_key(key, each, f"key of {name}", ("row", "column"))
    if "row" not in parts:
        raise node.error(f"{name} must name the row of another cell: {{row: ..., column: ...}}")
    column = parts["column"].line_of_text("column") if "column" in parts else None
    return CellReference(parts["row"].line_of_text("row"), column)
