"""The experiments in ``benchmarks/experiments``: all are valid, and say where their numbers are from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsebert.cli import app
from sparsebert.cli.train_options import TrainCommandOptions
from sparsebert.experiments.read import read_experiment

FOLDER = Path(__file__).parents[2] / "benchmarks" / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))
OPTIONS = TrainCommandOptions()
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# A small preset ends in minutes on two cores: this many steps at most, over all rounds of its cells.
MOST_STEPS = 4000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_is_valid(file: Path) -> None:
    grid = read_experiment(file, OPTIONS)
    assert grid.cells
    assert grid.notes, "say how the paper ran it, and what is different here"
    assert grid.source is not None
    assert grid.source.url.startswith("https://")
    assert grid.source.paper in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("preset", [[], ["--small"]], ids=["whole", "small"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_train_takes_the_options_of_every_cell(
    file: Path, preset: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["sweep", str(file), "--dry-run", *preset]) == 0
    cells = read_experiment(file, OPTIONS, small=bool(preset)).cells
    assert capsys.readouterr().out.count("sparsebert train ") >= len(cells)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_published_numbers_name_the_text_that_they_were_read_in(file: Path) -> None:
    grid = read_experiment(file, OPTIONS)
    if not grid.published:
        notes = " ".join(grid.notes.split())
        assert "could not be verified" in notes or "No paper has these numbers" in notes
        return
    assert grid.source is not None
    assert grid.source.table
    before = file.read_text().split("\npublished:\n")[0].splitlines()
    comment = [line for line in before[-6:] if line.startswith("#")]
    assert re.search(r"[Rr]ead in the (paper|picture|README)|stand in the README", " ".join(comment))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_published_percentages_are_between_0_and_100(file: Path) -> None:
    grid = read_experiment(file, OPTIONS)
    lowest = -100.0 if grid.relative_to else 0.0
    for place, number in grid.published.items():
        assert lowest <= number.mean <= 100, place


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_small_preset_runs_minilm_for_some_hundred_steps(file: Path) -> None:
    grid = read_experiment(file, OPTIONS, small=True)
    assert grid.small
    for cell in grid.cells:
        assert cell.options.get("model") == MINILM or "model" in cell.sources
        assert cell.options["device"] == "cpu"
    assert sum(int(str(cell.options["steps"])) for cell in grid.cells) <= MOST_STEPS


def test_every_experiment_stands_in_the_list() -> None:
    listed = set(re.findall(r"`([\w-]+\.yaml)`", (FOLDER / "README.md").read_text()))
    assert listed == {file.name for file in FILES}
