"""Groups of options: the same names, defaults and help on every command that takes the group."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import pytest
import typer

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from sparsebert.cli import bench, convert, evaluate, prune, train, transfer
from sparsebert.cli.data_options import DataOptions
from sparsebert.cli.option_groups import TRAINING_HELP, flattened
from sparsebert.cli.shared_options import seed_list
from sparsebert.cli.train_options import requested_runs
from sparsebert.lottery.method_defaults import with_defaults_of_method
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


def test_an_explicit_0_is_told_from_an_omitted_warm_up() -> None:
    line = ["--model", "bert", "--task", "sst2", "--method", "cap-structured", "--sparsity", "0.2"]
    for given, steps in (([], 3), (["--warmup-steps", "0"], 0), (["--warmup-ratio", "0"], 0)):
        requested = requested_runs([*line, *given])
        assert with_defaults_of_method(requested.config).training.warmup_of(30) == steps


def test_options_are_shown_by_group() -> None:
    hints = inspect.signature(train.train).parameters
    panels = {name: get_args(hints[name].annotation)[1].rich_help_panel for name in hints}
    asked = ("data", "scope", "steps", "rewind", "teacher", "method")
    assert [panels[name] for name in asked] == [
        "Data",
        "Pruning units",
        "Training",
        "Options of methods",
        "Teacher",
        None,
    ]


def test_the_help_of_an_option_names_all_its_values() -> None:
    def help_of(command: Any, option: str) -> str:
        hint = inspect.signature(command, eval_str=True).parameters[option].annotation
        return str(hint.__metadata__[0].help)

    assert {name for name in FORMATS if name in help_of(bench.bench, "format")} == set(FORMATS)
    assert all(target in help_of(convert.convert, "to") for target in convert.TARGETS)


def test_every_command_that_reads_a_task_reads_it_from_the_same_places() -> None:
    places = set(vars(DataOptions()))
    for command in (train.train, evaluate.evaluate, transfer.transfer, prune.prune):
        assert places <= set(inspect.signature(command).parameters)


def test_seeds_are_whole_numbers_each_once() -> None:
    assert seed_list("3, 1,3") == [3, 1]
    for text in ("", "1,", "1.5", "one"):
        with pytest.raises(ValueError, match="must be whole numbers"):
            seed_list(text)


def test_a_mean_stands_with_its_deviation_and_verdict_where_there_are_any() -> None:
    assert mean_and_verdict({"mean": 0.5, "std": 0.01, "verdict": "strict"}) == "0.5000 ± 0.0100 strict"
    assert mean_and_verdict({"mean": 0.5, "std": None}) == "0.5000"
