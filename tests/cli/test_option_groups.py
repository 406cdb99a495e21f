"""Groups of options: the same names, defaults and help on every command that takes the group."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from enum import Enum
from typing import Annotated, get_args, get_type_hints

import pytest
import typer

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from sparsebert.cli import app, tickets, train, transfer
from sparsebert.cli.method_options import MethodOptions
from sparsebert.cli.option_groups import TRAINING_HELP, DataOptions, flattened, seed_list
from sparsebert.lottery import method as methods
from sparsebert.lottery.method import lottery_method, lottery_methods
from sparsebert.report.format import mean_and_verdict
from sparsebert.training.settings import TrainingSettings
from sparsebert_kernels.formats import FORMATS


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option(help="columns")]
    height: Annotated[int, typer.Option(help="rows")] = 2

    def __post_init__(self) -> None:
        if self.height < 1:
            raise ValueError("height must be at least 1")


def test_a_group_is_one_option_a_field_and_is_put_together_again() -> None:
    seen = []

    def command(name: Annotated[str, typer.Option()], size: Size, loud: bool = False) -> None:
        """What it does."""
        seen.append((name, size, loud))

    flat = flattened(command)
    parameters = inspect.signature(flat).parameters
    assert list(parameters) == ["name", "width", "height", "loud"]
    assert parameters["width"].default is inspect.Parameter.empty
    assert flat.__doc__ == "What it does."
    flat(name="a", width=3, height=2, loud=True)
    assert seen == [("a", Size(width=3, height=2), True)]
    with pytest.raises(ValueError, match="height must be"):
        flat(name="a", width=3, height=0, loud=False)


def test_every_setting_of_training_has_its_own_default_on_every_command_that_trains() -> None:
    defaults = TrainingSettings()
    assert TRAINING_HELP.keys() <= vars(defaults).keys()
    for command in (train.train, transfer.transfer):
        options = inspect.signature(command).parameters
        assert {name: options[name].default for name in TRAINING_HELP} == {
            name: getattr(defaults, name) for name in TRAINING_HELP
        }


def test_options_are_shown_by_group() -> None:
    hints = inspect.signature(train.train).parameters
    panels = {name: get_args(hints[name].annotation)[1].rich_help_panel for name in hints}
    asked = ("data", "scope", "steps", "rewind", "teacher", "method")
    assert [panels[name] for name in asked] == [
        "Data",
        "What is pruned",
        "Training",
        "Options of methods",
        "Teacher",
        None,
    ]


def test_the_help_of_an_option_names_all_its_values() -> None:
    hints = inspect.signature(train.train).parameters
    checked = set()
    for method in methods._METHODS.values():
        for option in fields(method):
            if isinstance(option.default, Enum):
                text = get_args(hints[option.name].annotation)[1].help
                assert all(re.search(rf"\b{value.value}\b", text) for value in type(option.default)), text
                checked.add(option.name)
    assert {"rewind", "head", "share", "draw", "of", "mask", "curve", "within"} <= checked
    (of_bench,) = get_args(inspect.signature(app.bench, eval_str=True).parameters["format"].annotation)[1:]
    assert {name for name in FORMATS if name in of_bench.help} == set(FORMATS)
    (of_convert,) = get_args(inspect.signature(tickets.convert, eval_str=True).parameters["to"].annotation)[
        1:
    ]
    assert all(kind in of_convert.help for kind in tickets.KINDS)


def test_every_command_that_reads_a_task_reads_it_from_the_same_places() -> None:
    places = set(vars(DataOptions()))
    for command in (train.train, train.evaluate, transfer.transfer, tickets.prune):
        assert places <= set(inspect.signature(command).parameters)


def test_the_help_of_a_method_s_option_says_its_default_in_each_method() -> None:
    """Numbers and names alike; flags are off, and what is None or nothing is said in words."""
    options = get_type_hints(MethodOptions, include_extras=True)
    for name in lottery_methods():
        for each in fields(lottery_method(name)):
            default = each.default
            if default is None or isinstance(default, bool) or default in (0, ""):
                continue
            (option,) = (part for part in options[each.name].__metadata__ if hasattr(part, "help"))
            shown = default.value if isinstance(default, Enum) else default
            if each.name == "banks":
                assert shown in option.help
                continue
            words = re.split(r"[ ,;:()]|'s", option.help)
            spelled = f"{shown:.4f}".rstrip("0").rstrip(".") if isinstance(shown, float) else str(shown)
            assert spelled in words or f"{shown}" in words, (name, each.name, shown)


def test_seeds_are_whole_numbers_each_once() -> None:
    assert seed_list("3, 1,3") == [3, 1]
    for text in ("", "1,", "1.5", "one"):
        with pytest.raises(ValueError, match="whole numbers are expected"):
            seed_list(text)


def test_a_mean_stands_with_its_deviation_and_verdict_where_there_are_any() -> None:
    assert mean_and_verdict({"mean": 0.5, "std": 0.01, "verdict": "strict"}) == "0.5000 ± 0.0100 strict"
    assert mean_and_verdict({"mean": 0.5, "std": None}) == "0.5000"
