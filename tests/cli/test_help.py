"""`--help` of every command, the start page, `--version` and shell completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import sparsebert
from sparsebert.cli import app
from sparsebert.cli.start_page import FIRST_COMMANDS

WIDTH = 80


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen of 80 columns."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def commands() -> dict[str, Any]:
    return app.command_line().commands


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("name", app.COMMANDS)
def test_a_command_s_help_fits_the_screen_with_every_word_whole(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert "…" not in out
    words, command = out.split(), commands()[name]
    for param in command.params:
        entry = param.get_help_record(typer.Context(command))
        assert set(" ".join(entry).split()) <= set(words), param.name


@pytest.mark.usefixtures("terminal")
def test_the_options_stand_under_the_headings_of_their_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line and not line.startswith((" ", "Usage"))]
    assert headings == [
        *("Options:", "Data:", "Pruning units:", "Training:", "Options of methods:", "Teacher:", "Resources:")
    ]


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_overview_names_every_command_with_its_whole_summary(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    one_line = " ".join(out.split())
    for name, function in app.COMMANDS.items():
        summary = " ".join((function.__doc__ or "").split("\n\n", 1)[0].split())
        assert f"{name} {summary}" in one_line


def test_without_arguments_three_commands_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    out = capsys.readouterr().out
    assert len(FIRST_COMMANDS) == 3
    places = [out.index(f"  {command}\n") for command in FIRST_COMMANDS]
    assert places == sorted(places)
    assert places[-1] < out.index("Commands:")


@pytest.mark.parametrize("command", FIRST_COMMANDS)
def test_the_first_commands_have_options_that_exist(command: str) -> None:
    _, name, *options = command.split()
    known = {flag for param in commands()[name].params for flag in param.opts}
    assert {option for option in options if option.startswith("--")} <= known


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparsebert {sparsebert.__version__}\n"


@pytest.mark.parametrize(
    ("line", "completion"), [("sparsebert tr", "transfer"), ("sparsebert train --mask-i", "--mask-interval")]
)
def test_the_shell_completes_commands_and_options(line: str, completion: str) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    code = "import sys; from sparsebert.cli import app; sys.exit(app.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(app.__file__).parents[2],
        env={**os.environ, app.COMPLETION_VARIABLE: "complete_bash", **words},
    )
    assert completion in done.stdout.split(), done.stderr


def test_help_needs_none_of_the_heavy_libraries() -> None:
    code = "import sys; from sparsebert.cli import app; app.main([]); app.main(['--help']); "
    code += "app.main(['train', '--help']); "
    code += "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'jinja2'}; "
    code += "sys.exit(' '.join(heavy & sys.modules.keys()) or 0)"
    root = Path(app.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
