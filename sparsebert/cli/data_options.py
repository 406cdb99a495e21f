"""Options about the examples of a task: where they come from, and what their columns and labels mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sparsebert.cli.path_checks import require_files
from sparsebert.cli.shared_options import TASK_NAMES, comma_separated, require_applicable, require_numbers

if TYPE_CHECKING:
    from sparsebert.tasks import Task, TaskData

# Name of a task from the user's files, if --task is omitted.
USER_TASK = "own"

# Kinds of tasks on running text, by the value of --lm.
LANGUAGE_MODELS: dict[str, Literal["mlm", "clm"]] = {"masked": "mlm", "causal": "clm"}

# Names of tasks become names of folders.
_FOLDER_NAME = re.compile(r"\w[\w.+ -]{0,99}")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Origin of a task's examples: a local folder, the hub, or tables of the user."""

    panel: ClassVar = "Data"

    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "--data-dir",
            help="folder with the tasks' original files (SST-2/train.tsv, ...); the hub if omitted",
        ),
    ] = None
    train_file: Annotated[
        Path | None, typer.Option(help="your own task: table to train on (.csv, .tsv, .jsonl, .json)")
    ] = None
    validation_file: Annotated[Path | None, typer.Option(help="your own task: table to evaluate on")] = None
    text_columns: Annotated[
        str, typer.Option(help="your own task: text column, or two columns: premise,hypothesis")
    ] = "text"
    label_column: Annotated[str, typer.Option(help="your own task: label column")] = "label"
    labels: Annotated[
        str | None,
        typer.Option(
            help="your own task: all classes, in the order of the model's outputs: negative,neutral,positive "
            "[default: the sorted labels of the training file]"
        ),
    ] = None
    label_map: Annotated[
        str | None,
        typer.Option(
            metavar="<label=output,...>",
            help="labels of the data as a trained --model names them, by name or number of an output, if its "
            "names or their order differ: neg=NEGATIVE,pos=POSITIVE or neg=0,pos=1",
        ),
    ] = None
    drop_empty: Annotated[
        bool,
        typer.Option("--drop-empty", help="your own task: drop and count rows without a text or a label"),
    ] = False
    regression: Annotated[bool, typer.Option("--regression", help="your own task: labels are scores")] = False
    lm: Annotated[
        str | None,
        typer.Option(
            "--lm",
            metavar="<masked|causal>",
            help="your own files are running text (.txt), to model masked, as BERT does, or causal, as GPT-2 "
            "and Llama do",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(help="maximum tokens per example; the default of task or command if omitted"),
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError for options that do not apply, and for a length without room for a token."""
        require_numbers({"--max-length": self.max_length})
        if not self.user_files:
            options = {
                "--text-columns": self.text_columns != "text",
                "--label-column": self.label_column != "label",
                "--regression": self.regression,
                "--labels": self.labels,
                "--drop-empty": self.drop_empty,
                "--lm": self.lm,
            }
            require_applicable(options, "--train-file or --validation-file")
        if self.lm is not None:
            if self.lm not in LANGUAGE_MODELS:
                raise ValueError(f"--lm must be masked or causal, got {self.lm!r}")
            for option, is_given in (
                ("--text-columns", self.text_columns != "text"),
                ("--label-column", self.label_column != "label"),
                ("--labels", self.labels is not None),
                ("--label-map", self.label_map is not None),
                ("--drop-empty", self.drop_empty),
                ("--regression", self.regression),
            ):
                if is_given:
                    raise ValueError(f"{option} belongs to a table, and --lm {self.lm} reads text: omit it")

    @property
    def user_files(self) -> bool:
        """Whether the user passes files for a task."""
        return self.train_file is not None or self.validation_file is not None

    @property
    def user_tables(self) -> bool:
        """Whether the user passes tables of examples, not running text."""
        return self.user_files and self.lm is None

    def task_name(self, task: str | None) -> str:
        """Return the name of a command's task. Raises ValueError if the options name none, or two."""
        from sparsebert.tasks import TASKS

        if task is None and not self.user_files:
            raise ValueError(
                f"--task is missing: pass one of {TASK_NAMES}, or --train-file and --validation-file for a "
                "task of your own"
            )
        if task in TASKS and self.user_files:
            raise ValueError(f"--task {task} names a built-in task; choose another name for your own files")
        if self.user_files and task is not None and not _FOLDER_NAME.fullmatch(task):
            raise ValueError(
                f"--task names a folder: use letters, digits and . _ + - (not first), got {task[:60]!r}"
            )
        return task or USER_TASK

    def source(
        self, task: str, outputs: tuple[str, ...] | None = None, *, validates: bool = True
    ) -> Path | TaskData | None:
        """Return the ``data`` of :func:`sparsebert.workflows.train.train` for a task.

        For the user's files, print the classes with their counts, and the dropped rows.

        Args:
            task: The task's name.
            outputs: Labels of a model that is already trained on the user's task; if None, the training file
                or --labels define the labels.
            validates: Whether the command needs the validation table; if not, it needs the training table,
                and takes no other.

        Raises:
            ValueError: For an unknown task, missing files, and as :func:`sparsebert.tasks.load_files`.
            OSError: As :func:`sparsebert.tasks.load_files`.
        """
        from sparsebert.tasks import TASKS, find_task, load_files, load_texts
        from sparsebert.tasks.label_order import data_labels

        if task in TASKS or not self.user_files:
            find_task(task)
            return self.data
        if self.validation_file is None and validates:
            raise ValueError("--validation-file is missing: your own task needs a table to evaluate on")
        if self.validation_file is not None and not validates:
            raise ValueError(
                f"--validation-file {self.validation_file} does not apply: the command reads training "
                "examples alone; omit it, or name it with --train-file"
            )
        labels = None if self.labels is None else comma_separated("--labels", self.labels)
        defined = labels is not None or outputs is not None or self.lm is not None
        if self.train_file is None and not (validates and defined):
            raise ValueError("--train-file is missing: your own task needs a table to train on")
        require_files({"--train-file": self.train_file, "--validation-file": self.validation_file})
        if self.lm is not None:
            kind = LANGUAGE_MODELS[self.lm]
            return load_texts(self.train_file, self.validation_file, kind=kind, name=task)
        if labels is None and outputs is not None and not self.regression:
            labels = list(data_labels(outputs, self.label_pairs))
        data = load_files(
            self.train_file,
            self.validation_file,
            columns=[column.strip() for column in self.text_columns.split(",")],
            label=self.label_column,
            labels=labels,
            regression=self.regression,
            name=task,
            drop_empty=self.drop_empty,
            label_map=self.label_pairs,
        )
        print_classes(data)
        return data

    def require_applicable_folder(self, tasks: Iterable[str]) -> None:
        """Raise ValueError for --data if the user's files hold all tasks of the command."""
        from sparsebert.tasks import TASKS

        if self.user_files and not TASKS.keys() & set(tasks):
            require_applicable({"--data": self.data}, "a built-in task")

    def require_no_task(self, *, texts: bool = False) -> None:
        """Raise ValueError for options about the examples of a task, for a command without one.

        Args:
            texts: Whether the command reads texts, which have a maximum length as well.
        """
        options: dict[str, object] = {"--data": self.data, "--label-map": self.label_map}
        options |= {} if texts else {"--max-length": self.max_length}
        require_applicable(options, "--task")

    @property
    def label_pairs(self) -> dict[str, str]:
        """The pairs of --label-map. Raises ValueError for a part that is not a pair, and a label twice."""
        pairs: dict[str, str] = {}
        for part in comma_separated("--label-map", self.label_map) if self.label_map else []:
            label, equals, output = (each.strip() for each in part.rpartition("="))
            if not (label and equals and output) or label in pairs:
                raise ValueError(
                    "--label-map must be pairs of a label and an output of the model, each label once, such "
                    f"as neg=NEGATIVE,pos=POSITIVE, got {self.label_map!r}"
                )
            pairs[label] = output
        return pairs

    def mapped(self, task: Task) -> Task:
        """Return a built-in task with the names of --label-map; a task of the user's files has them already.

        Raises:
            ValueError: As :func:`sparsebert.tasks.label_order.with_label_map`.
        """
        from sparsebert.tasks.label_order import with_label_map

        return task if self.user_files else with_label_map(task, self.label_pairs)


def print_classes(data: TaskData) -> None:
    """Print a task's classes with their counts, and the rows that were dropped; on one process of several."""
    from sparsebert.report.format import counted
    from sparsebert.tasks.label_cleaning import class_counts
    from sparsebert.training import distributed

    if not distributed.is_main():
        return
    for line in class_counts(data):
        typer.echo(line)
    for split, count in data.dropped.items():
        typer.echo(f"{data.task.name}, {split}: dropped {counted(count, 'row')} without a text or a label")
