"""The reader of experiments: the grid, how options combine, and one line for everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebert.cli.train_options import TrainCommandOptions
from sparsebert.experiments.grid import Cell, Grid, Place, Published
from sparsebert.experiments.read import read_experiment

OPTIONS = TrainCommandOptions()
EXPERIMENT = """\
title: Winning tickets
source: {paper: Chen et al. 2020, table: Table 2, page: 5}
notes: |
  Two lines,
  as they are.
train:
  model: bert-base-uncased
  epochs: 3
  learning-rate: 2e-5
seeds: [1, 2]
columns:
  mnli: {task: mnli, sparsity: 0.7}
  sst2: {label: SST-2, task: sst2, sparsity: 0.6}
rows:
  transferred: {method: ticket, sparsity: null, ticket: {row: imp, column: mnli}, columns: [sst2]}
  dense: {label: no pruning, method: dense, sparsity: null}
  imp: {method: imp, pooler: true, batch-size: 16}
cells:
  imp: {sst2: {batch-size: 64}}
metric: {mnli: accuracy_mismatched}
published:
  unit: percent
  imp: {mnli: 82.6, sst2: [91.2, 0.3]}
  dense: {mnli: null}
unavailable: {mnli: it is not here}
small:
  train: {model: minilm, steps: 20}
  seeds: [7]
  columns: [sst2]
  rows: {imp: {sparsity: 0.5}, dense: null}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        file = tmp_path / "chen.yaml"
        file.write_text(text)
        return file

    return written


@pytest.fixture
def grid(write: Write) -> Grid:
    return read_experiment(write(EXPERIMENT), OPTIONS)


def cell(grid: Grid, row: str, column: str) -> Cell:
    return next(each for each in grid.cells if each.place == Place(row, column))


def test_a_grid_has_a_cell_for_each_row_column_and_seed(grid: Grid) -> None:
    assert (grid.name, grid.title, grid.small) == ("chen", "Winning tickets", False)
    assert grid.rows == {"transferred": "transferred", "dense": "no pruning", "imp": "imp"}
    assert grid.columns == {"mnli": "mnli", "sst2": "SST-2"}
    assert len(grid.cells) == 2 * 5
    assert [each.seed for each in grid.cells] == [1] * 5 + [2] * 5
    assert grid.notes == "Two lines,\nas they are."
    assert grid.unavailable == {"mnli": "it is not here"}
    assert grid.metrics == {"mnli": "accuracy_mismatched"}


def test_a_cell_stands_after_the_cells_whose_results_it_needs(grid: Grid) -> None:
    assert [each.name for each in grid.cells[:3]] == [
        "imp/mnli/seed-1",
        "transferred/sst2/seed-1",
        "dense/mnli/seed-1",
    ]
    assert cell(grid, "transferred", "sst2").sources == {"ticket": Place("imp", "mnli")}


def test_rows_replace_options_of_columns_and_null_takes_them_back(grid: Grid) -> None:
    assert cell(grid, "dense", "mnli").options == {
        "model": "bert-base-uncased",
        "epochs": "3",
        "learning-rate": "2e-5",
        "task": "mnli",
        "method": "dense",
    }
    assert cell(grid, "imp", "mnli").options["batch-size"] == "16"
    assert cell(grid, "imp", "sst2").options["batch-size"] == "64"
    assert cell(grid, "imp", "sst2").options["pooler"] is True


def test_published_numbers_may_have_a_deviation_and_may_be_missing(grid: Grid) -> None:
    assert grid.published == {
        Place("imp", "mnli"): Published(82.6),
        Place("imp", "sst2"): Published(91.2, 0.3),
    }
    assert grid.source is not None
    assert (grid.source.paper, grid.source.table, grid.source.page) == ("Chen et al. 2020", "Table 2", "5")


def test_published_numbers_may_be_differences_to_a_row(write: Write) -> None:
    assert read_experiment(write(EXPERIMENT), OPTIONS).relative_to == ""
    text = EXPERIMENT.replace("unit: percent", "relative-to: dense")
    assert read_experiment(write(text), OPTIONS).relative_to == "dense"


def test_a_flag_may_have_a_negative_form(write: Write) -> None:
    grid = read_experiment(write(EXPERIMENT.replace("pooler: true", "no-rescore: true")), OPTIONS)
    assert cell(grid, "imp", "mnli").options["no-rescore"] is True


def test_the_small_preset_replaces_the_options_of_the_whole(write: Write) -> None:
    small = read_experiment(write(EXPERIMENT), OPTIONS, small=True)
    assert small.small
    assert [each.name for each in small.cells] == ["dense/sst2/seed-7", "imp/sst2/seed-7"]
    options = cell(small, "imp", "sst2").options
    assert (options["model"], options["steps"], options["sparsity"]) == ("minilm", "20", "0.5")
    assert "epochs" not in options  # its steps are the other length of a round


def test_the_small_preset_may_be_missing(write: Write) -> None:
    text = EXPERIMENT[: EXPERIMENT.index("small:")]
    with pytest.raises(ValueError, match=r"chen.yaml has no small preset: run it whole"):
        read_experiment(write(text), OPTIONS, small=True)


def test_a_scalar_is_the_text_of_the_command_line(write: Write) -> None:
    """YAML 1.1 would read a method called no as False, and 1_6 as 16."""
    grid = read_experiment(write(EXPERIMENT.replace("method: imp", "method: no")), OPTIONS)
    assert cell(grid, "imp", "mnli").options["method"] == "no"
    assert cell(grid, "imp", "mnli").options["learning-rate"] == "2e-5"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("notes:", "note:", r"chen.yaml:3: unknown key 'note'; did you mean 'notes'\?"),
        ("learning-rate", "learning_rate", r":9: unknown option .*; did you mean 'learning-rate'"),
        ("page: 5", "pages: 5", r":2: unknown key of source 'pages'; did you mean 'page'\?"),
        ("epochs: 3", "epochs: three", r":8: --epochs must be a number, got 'three'"),
        ("epochs: 3", "epochs: [3]", r":8: epochs must be one value as on the command line, got a list"),
        ("pooler: true", "pooler: maybe", r":17: pooler is a flag: it must be true or false, got 'maybe'"),
        ("epochs: 3", "seeds: 3", r":8: 'seeds' cannot be an option of a cell: name the seeds at the top"),
        ("seeds: [1, 2]", "seeds: [1, 1]", r":10: seeds must be different whole numbers"),
        ("seeds: [1, 2]", "seeds: []", r":10: seeds must be different whole numbers"),
        ("seeds: [1, 2]", "seeds: 3", r":10: seeds must be a list \(\[...\]\), got '3'"),
        ("seeds: [1, 2]", "seeds: [one]", r":10: a seed must be a whole number, got 'one'"),
        ("task: mnli, ", "", r":12: column mnli has no task: name one"),
        ("  model: bert-base-uncased\n", "", r":14: row transferred, column sst2: model is missing"),
        ("column: mnli}", "column: mnl}", r":15: unknown column of ticket 'mnl'; did you mean 'mnli'\?"),
        ("row: imp,", "row: im,", r":15: unknown row of ticket 'im'; did you mean 'imp'\?"),
        ("{row: imp, column: mnli}", "{column: mnli}", r":15: ticket must name the row of another cell"),
        ("{row: imp, ", "{rows: imp, ", r":15: unknown key of ticket 'rows'; did you mean 'row'\?"),
        ("row: imp, column: mnli", "row: dense", r":15: row transferred, .* whose method dense finds none"),
        ("columns: [sst2]}", "columns: [sst]}", r":15: unknown column 'sst'; did you mean 'sst2'\?"),
        ("imp: {mnli: 82.6", "impp: {mnli: 82.6", r":23: unknown row of published numbers 'impp'"),
        ("imp: {mnli: 82.6", "imp: {mnl: 82.6", r":23: unknown column of published numbers 'mnl'"),
        ("82.6", "high", r":23: a published number must be a number, got 'high'"),
        ("82.6", ".nan", r":23: a published number must be a number, got '.nan'"),
        ("82.6", "nan", r":23: a published number must be a finite number"),
        ("[91.2, 0.3]", "[91.2]", r":23: a published number with its deviation must be \[mean, deviation\]"),
        ("unit: percent", "relative-to: dens", r":22: unknown row of relative-to 'dens'; did"),
        ("unit: percent", "unit: per cent", r":22: unit must be percent or fraction, got 'per cent'"),
        ("columns: [sst2]\n", "columns: [cola]\n", r":29: unknown column 'cola'; known: mnli, sst2"),
        ("dense: null}", "dens: null}", r":30: unknown row 'dens'; did you mean 'dense'\?"),
        ("columns: [sst2]\n", "columns: []\n", r":29: the small preset has no cells: name a column"),
        ("  dense: {label", "  imp: {label", r":17: 'imp' stands twice, first in line 16: keep one"),
        ("title: Winning tickets\n", "", r"chen.yaml: title is missing"),
        ("title: Winning tickets", "title: [a]", r":1: title must be a text, got a list"),
        ("title: Winning tickets", "title: &a b", r":1: anchors and aliases are not supported"),
        ("title: Winning tickets", "title: !!python/name:os.system x", r":1: tags are not supported"),
        ("title: Winning tickets", "title: {", r"chen.yaml:\d+: not YAML"),
        ("  imp: {method", "  i/p: {method", r":17: a name of rows must be letters, digits"),
        ("[91.2, 0.3]", "[91.2, -0.3]", r":23: a deviation must be at least 0, got -0.3"),
        ("metric: {mnli", "metric: {mnl", r":20: unknown column of metric 'mnl'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_its_place(
    write: Write, before: str, after: str, message: str
) -> None:
    assert before in EXPERIMENT
    with pytest.raises(ValueError, match=message) as caught:
        read_experiment(write(EXPERIMENT.replace(before, after, 1)), OPTIONS)
    assert "\n" not in str(caught.value)


def test_cells_that_need_each_other_are_refused(write: Write) -> None:
    text = EXPERIMENT.replace(
        "imp: {method: imp,",
        "imp: {method: ticket, sparsity: null, ticket: {row: transferred, column: sst2},",
    )
    with pytest.raises(ValueError, match=r"in a circle: transferred/sst2 -> imp/mnli -> transferred/sst2"):
        read_experiment(write(text), OPTIONS)


def test_a_cell_that_the_preset_leaves_out_lends_no_ticket(write: Write) -> None:
    text = EXPERIMENT.replace("dense: null}", "transferred: null}")
    with pytest.raises(ValueError, match=r"its ticket is that of imp/mnli, a cell that does not run here"):
        read_experiment(write(text), OPTIONS)


def test_a_grid_without_cells_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r":3: the grid has no cells: name a row and a column"):
        read_experiment(write("title: t\ncolumns: {a: {task: sst2}}\nrows: {}\n"), OPTIONS)


def test_a_grid_whose_rows_have_no_column_is_refused(write: Write) -> None:
    text = "title: t\ntrain: {model: m}\ncolumns: {a: {task: sst2}}\nrows: {r: {columns: []}}\n"
    with pytest.raises(ValueError, match=r":4: the grid has no cells: name a row and a column"):
        read_experiment(write(text), OPTIONS)


def test_a_preset_whose_rows_and_columns_do_not_meet_is_refused(write: Write) -> None:
    text = "title: t\ntrain: {model: m}\ncolumns: {a: {task: sst2}, b: {task: cola}}\n"
    text += "rows: {r: {columns: [a]}}\nsmall:\n  columns: [b]\n"
    with pytest.raises(ValueError, match=r":5: the small preset has no cells"):
        read_experiment(write(text), OPTIONS)


def test_the_preset_keeps_the_papers_numbers_of_its_own_tasks_alone(write: Write) -> None:
    text = "title: t\ntrain: {model: m}\nrows: {r: {}}\n"
    text += "columns: {a: {task: sst2, label: SST-2 60 %}, b: {task: mnli}}\n"
    text += "published: {r: {a: 90, b: 80}}\n"
    text += "small:\n  columns: {a: {label: SST-2 70 %}, b: {task: cola}}\n"
    preset = read_experiment(write(text), OPTIONS, small=True)
    assert preset.published == {Place("r", "a"): Published(90.0, column="SST-2 60 %")}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*missing.yaml: No such file"):
        read_experiment(tmp_path / "missing.yaml", OPTIONS)
    with pytest.raises(ValueError, match=r"is a folder; expected a regular file"):
        read_experiment(tmp_path, OPTIONS)
    with pytest.raises(ValueError, match=r"is empty: expected the description"):
        read_experiment(write(""), OPTIONS)
    with pytest.raises(ValueError, match=r":1: an experiment must be a mapping"):
        read_experiment(write("- a\n"), OPTIONS)
    (tmp_path / "bytes.yaml").write_bytes(b"title: \xff\n")
    with pytest.raises(ValueError, match=r"not UTF-8 text"):
        read_experiment(tmp_path / "bytes.yaml", OPTIONS)
    with pytest.raises(ValueError, match=r"nested too deeply"):
        read_experiment(write("[" * 1000 + "]" * 1000), OPTIONS)
