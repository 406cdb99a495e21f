"""The options of `train` by name, for experiments that name them in a file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import typer
from typer.main import get_command

from sparsebert.cli.command import USAGE_ERROR, Command
from sparsebert.cli.option_groups import require_one_length
from sparsebert.cli.train import train
from sparsebert.cli.train_runs import TrainRuns

# Options that belong to a whole sweep, and what to write instead.
_MANAGED = {
    "seeds": "name the seeds at the top, as seeds: [1, 2, 3]",
    "seed": "name the seeds at the top, as seeds: [1, 2, 3]",
    "out": "the folder of a sweep is its option --out",
    "json": "the sweep itself has the option --json",
    "data": "the folder of the data is the option --data of the sweep",
    "data-dir": "the folder of the data is the option --data of the sweep",
    "dense": "give the dense model a row of its own",
    "carbon-intensity": "it belongs to the place of a run: the sweep itself has the option",
    "help": "it shows the options of train",
}


class TrainCommandOptions:
    """The options of ``sparsebert train`` that an experiment may set.

    Attributes:
        names: Names without dashes, in the order of the help.
        flags: The names of those that are flags.
        managed: Options that belong to a whole sweep, with a hint.
    """

    managed: Mapping[str, str] = _MANAGED

    def __init__(self) -> None:
        options = [each for each in _command().params if each.param_type_name == "option"]
        names = {
            flag.removeprefix("--"): each
            for each in options
            for flag in (each.opts[0], *each.secondary_opts)  # --rescore, and --no-rescore
        }
        self.names: Sequence[str] = tuple(name for name in names if name not in _MANAGED)
        self.flags: Sequence[str] = tuple(name for name in self.names if names[name].is_flag)

    def check(self, name: str, value: str | bool) -> None:
        """Raise ValueError unless the command line takes this value."""
        if refusal := _refusal(name, value):
            raise ValueError(refusal)


@functools.cache
def _refusal(name: str, value: str | bool) -> str:
    """Return why the command line refuses a value, or "". Experiments repeat few values in many cells."""
    try:
        parsed(arguments({"model": "bert", name: value}))
    except ValueError as error:
        return str(error)
    return ""


def arguments(options: Mapping[str, str | bool]) -> list[str]:
    """Return options as arguments of the command line; a flag has the value True."""
    return [
        text
        for name, value in options.items()
        for text in ((f"--{name}",) if value is True else (f"--{name}", str(value)))
    ]


def parsed(line: Sequence[str]) -> dict[str, Any]:
    """Return the values of all options of ``train`` for a command line.

    Raises:
        ValueError: In one line, as the command line does.
    """
    try:
        return dict(_command().make_context("train", list(line)).params)
    except USAGE_ERROR as error:
        raise ValueError(" ".join(error.format_message().split())) from None  # type: ignore[attr-defined]


def requested_runs(line: Sequence[str]) -> TrainRuns:
    """Return what a command line of ``train`` asks for; its folder and seeds are ignored.

    Raises:
        ValueError: In one line, as the command line does.
    """
    require_one_length(line)
    values = train.grouped(parsed(line))  # type: ignore[attr-defined]
    return TrainRuns(**{each.name: values[each.name] for each in fields(TrainRuns)})


@functools.cache
def _command() -> Any:
    app = typer.Typer(rich_markup_mode=None)
    app.command("train", cls=Command)(train)
    return get_command(app)
