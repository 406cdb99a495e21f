"""The options that the documents name exist, and have the defaults that the documents state."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from sparsebert.cli.app import app
from sparsebert.cli.renamed_options import RENAMED
from sparsebert.lottery.method import lottery_method, lottery_methods
from tests.docs.documents import PAGES, ROOT, name

# Of other commands.
OTHERS = {"--no-deps", "--help", "--version", "--install-completion", "--show-completion"}
# The page of calibrated one-shot pruning has no methods of `sparsebert train`.
METHOD_PAGES = sorted(set((ROOT / "docs" / "methods").glob("*.md")) - {ROOT / "docs/methods/calibrated.md"})
# Pages without a section a method -> the method whose options their table shows.
METHOD_OF_PAGE = {"static-model-pruning.md": "smp", "contrastive.md": "cap"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_options_exist(page: Path) -> None:
    command: Any = typer.main.get_command(app)
    options = {
        option
        for each in command.commands.values()
        for p in each.params
        for option in (*p.opts, *p.secondary_opts)
    }
    renamed = (
        {former for table in RENAMED.values() for former in table}
        if page.name == "command-line.md"
        else set()
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page.read_text()))
    assert not named - options - OTHERS - renamed


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_the_defaults_are_those_of_the_methods(page: Path) -> None:
    names = _fields_by_option()
    rows = _stated_defaults(page)
    assert len(rows) >= 2
    for method, option, stated in rows:
        defaults = {each.name: each.default for each in fields(type(lottery_method(method)))}
        assert names[option] in defaults, f"{method} has no option {option}"
        # Words in place of a value stand for a default that depends on the run.
        if re.fullmatch(r"`[\w-]+`|[\d.]+|on|off", stated):
            assert _text(defaults[names[option]]) == stated.strip("`"), (method, option)
        else:
            assert defaults[names[option]] is None or option == "--banks", (method, option)


def test_every_method_has_a_page() -> None:
    text = (ROOT / "docs" / "finding-tickets.md").read_text()
    for method in lottery_methods():
        assert f"`{method}`" in text, method


def _stated_defaults(page: Path) -> list[tuple[str, str, str]]:
    """Return (method, option, default) of the tables with a column of defaults."""
    method = METHOD_OF_PAGE.get(page.name, "")
    rows, in_table = [], False
    for line in page.read_text().splitlines():
        if match := re.fullmatch(r"## (.*)", line):
            method = match[1] if match[1] in lottery_methods() else ""
        in_table = line.startswith("| option | default") or (in_table and line.startswith("|"))
        if not in_table or not line.startswith("| `--"):
            continue
        options, defaults, meaning = (cell.strip() for cell in line.strip("|").split("|"))
        names = re.findall(r"--[a-z-]+", options)
        values = [each.strip() for each in defaults.split(",")] if len(names) > 1 else [defaults]
        values = values * len(names) if len(values) == 1 else values
        named = re.match(r"(`[\w-]+`(?:, `[\w-]+`)*):", meaning)
        of = re.findall(r"`([\w-]+)`", named[1])[0] if named else method
        rows += [(of, each, value) for each, value in zip(names, values, strict=True) if of]
    return rows


def _fields_by_option() -> dict[str, str]:
    command: Any = typer.main.get_command(app)
    return {option: each.name for each in command.commands["train"].params for option in each.opts}


def _text(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(int(default)) if isinstance(default, float) and default.is_integer() else str(default)
