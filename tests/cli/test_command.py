"""Values that no option and no argument takes: empty ones, and text in place of a number."""

import inspect
from pathlib import Path
from typing import get_args

import pytest

from sparsebert.cli.app import COMMANDS, command_line
from tests.cli.test_app import refused

CLICK_COMMANDS = command_line().commands
OPTIONS = [
    (name, option)
    for name, command in CLICK_COMMANDS.items()
    for parameter in command.params
    if parameter.param_type_name == "option" and not parameter.is_flag
    for option in parameter.opts
]
NUMBERS = [
    (command, parameter.opts[0])
    for command, function in COMMANDS.items()
    for name, annotated in inspect.signature(function, eval_str=True).parameters.items()
    for parameter in CLICK_COMMANDS[command].params
    if parameter.name == name and get_args(annotated.annotation)[0] in (int, float, int | None, float | None)
]


@pytest.mark.parametrize("written", [["{}", ""], ["{}="]], ids=["separate", "joined"])
def test_an_empty_value_is_refused_for_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {command for command, _ in OPTIONS} == set(COMMANDS)
    for command, option in OPTIONS:
        line = refused(capsys, command, *(part.format(option) for part in written))
        assert line.endswith(" is empty; pass a value or omit it"), option
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["report", ""], "FILE_OR_FOLDER"),
        (["report", "results.jsonl", ""], "FILE_OR_FOLDER"),
        (["convert", "", "out"], "SOURCE"),
        (["convert", "ticket", ""], "OUTPUT"),
        (
            ["convert", "ticket", "out", "--to", "sparse", "--results", "a.jsonl", "--results", ""],
            "--results",
        ),
        (["train", "--data-dir", ""], "--data"),
    ],
)
def test_an_empty_value_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str], name: str
) -> None:
    assert refused(capsys, *arguments) == f"sparsebert: {name} is empty; pass a value or omit it"


def test_text_in_place_of_a_number_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(NUMBERS) > 50
    for command, option in NUMBERS:
        line = refused(capsys, command, option, "a few")
        assert line in {
            f"sparsebert: {option} must be a {kind}, got 'a few'" for kind in ("number", "whole number")
        }
    for value in ("nan", "1.5", "inf", "1e3", "0x10"):
        assert refused(capsys, "bench", "--batch", value).endswith(f"a whole number, got {value!r}")
