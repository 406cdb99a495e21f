"""Former names of options: they work, are hidden from the help, and name their successor."""

from __future__ import annotations

import pytest

from sparsebert.cli import app
from sparsebert.cli.renamed_options import RENAMED, with_current_names

PAIRS = [(command, old, new) for command, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("command", "old", "new"), PAIRS)
def test_a_former_name_is_replaced_with_one_line(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_current_names([command, old, "1", "--seeds", "1"]) == [command, new, "1", "--seeds", "1"]
    assert with_current_names([command, f"{old}=1"]) == [command, f"{new}=1"]
    assert capsys.readouterr().err.splitlines() == [f"sparsebert: {old} is deprecated; use {new}"] * 2


@pytest.mark.parametrize(("command", "old", "new"), PAIRS)
def test_the_command_takes_both_names_and_shows_the_new_one(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (old, new):
        assert app.main([command, name, "1", "--bad-option"]) == 2
        assert "No such option: --bad-option" in capsys.readouterr().err
    assert app.main([command, "--help"]) == 0
    words = capsys.readouterr().out.split()
    assert new in words
    assert old not in words


def test_other_commands_and_values_stay(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["prune", "--first", "1"], ["train", "--method", "first"]):
        assert with_current_names(arguments) == arguments
    assert capsys.readouterr().err == ""
