"""`--help` in plain text, at most 80 columns wide, with the options under the headings of their groups.

Typer's tables use so many columns for types and negative forms of options that they split words.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

_MAX_WIDTH = 80
# A longer name is printed on a separate line.
_MAX_NAME_WIDTH = 30


class CommandHelp(TyperCommand):
    """A command whose options stand under the headings of their groups."""

    def get_help(self, ctx: Any) -> str:
        """Return usage, description, arguments, options without a group, and each group."""
        return _help(self, ctx, {})


class GroupHelp(TyperGroup):
    """The command itself: its options and its commands."""

    def get_help(self, ctx: Any) -> str:
        """Return usage, description, options and commands."""
        return _help(self, ctx, {name: summary(command.help) for name, command in self.commands.items()})


def summary(doc: str | None) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(doc or "").split("\n\n", 1)[0].split())


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Return names with their descriptions beside them, wrapped to the terminal."""
    entries = list(entries)
    names = [len(name) for name, _ in entries if len(name) <= _MAX_NAME_WIDTH]
    column = 4 + max(names, default=0)
    lines = []
    for name, description in entries:
        start = f"  {name}".ljust(column)
        if not start.endswith("  "):  # Two blanks part a name from its description.
            lines.append(start)
            start = ""
        lines.append(_wrapped(description, start.ljust(column), " " * column))
    return "\n".join(lines)


def _help(command: Any, ctx: Any, commands: dict[str, str]) -> str:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        if (entry := param.get_help_record(ctx)) is None:
            continue
        if param.param_type_name == "argument":
            heading = "Arguments"
        else:
            heading = getattr(param, "rich_help_panel", None) or "Options"
        sections.setdefault(heading, []).append(entry)
    sections["Commands"] = list(commands.items())
    paragraphs = [each for each in inspect.cleandoc(command.help or "").split("\n\n") if each]
    parts = [command.get_usage(ctx), *(_wrapped(each, "  ", "  ") for each in paragraphs)]
    parts += [f"{heading}:\n{definitions(entries)}" for heading, entries in sections.items() if entries]
    return "\n\n".join(parts)


def _wrapped(text: str, first_indent: str, indent: str) -> str:
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    # Names of options and methods contain hyphens and must not be split there.
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
