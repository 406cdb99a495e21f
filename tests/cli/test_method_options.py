"""Options of the methods: the table is up to date, names every value, and shows every default."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import Enum
from typing import Any, get_type_hints

import pytest

from sparsebert.cli.generate_method_options import TABLE, generate
from sparsebert.cli.method_options import MethodOptions
from sparsebert.lottery.method import lottery_method, lottery_methods


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    hints = get_type_hints(MethodOptions, include_extras=True)
    return {name: hint.__metadata__[0].help for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def test_the_table_is_what_the_methods_say() -> None:
    assert TABLE.read_text(encoding="utf-8") == generate(), (
        "run `python -m sparsebert.cli.generate_method_options`"
    )


def test_every_option_of_a_method_is_an_option_of_the_command() -> None:
    of_methods = {each.name for name in lottery_methods() for each in fields(lottery_method(name))}
    assert of_methods == {each.name for each in fields(MethodOptions)}


def test_the_help_names_all_values_of_an_option(help_texts: dict[str, str]) -> None:
    checked = set()
    for name in lottery_methods():
        for option in fields(lottery_method(name)):
            if isinstance(option.default, Enum):
                text = help_texts[option.name]
                assert all(re.search(rf"\b{value.value}\b", text) for value in type(option.default)), text
                checked.add(option.name)
    assert {"rewind", "head", "share", "draw", "of", "mask", "curve", "within"} <= checked


@pytest.mark.parametrize("name", lottery_methods())
def test_the_help_shows_the_default_of_every_method(name: str, help_texts: dict[str, str]) -> None:
    """Numbers and names alike; flags are off, and None is described in words."""
    for each in fields(lottery_method(name)):
        default: Any = each.default
        if default is None or isinstance(default, bool):
            continue
        shown = default.value if isinstance(default, Enum) else default
        words = re.split(r"[ ;:()\[\]]|, |'s", help_texts[each.name])
        spelled = f"{shown:.4f}".rstrip("0").rstrip(".") if isinstance(shown, float) else str(shown)
        assert spelled in words, (name, each.name, shown)
