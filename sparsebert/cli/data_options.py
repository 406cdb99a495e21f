"""Options about the examples of a task: where they come from, and what their columns and labels mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from sparsebert.cli.path_checks import require_files
from sparsebert.cli.shared_options import (
    TASK_NAMES,
    DataFolder,
    comma_separated,
    require_applicable,
    require_numbers,
)

if TYPE_CHECKING:
    from sparsebert.tasks import Task, TaskData, TextFormat
    from sparsebert.tasks.registry import Kind

# Name of a task from the user's files, if --task is omitted.
USER_TASK = "own"

# Kinds of tasks on running text, by the value of --lm.
LANGUAGE_MODELS: dict[str, Literal["mlm", "clm"]] = {"masked": "mlm", "causal": "clm"}
# Whether questions may have no answer, by the value of --questions.
QUESTIONS = {"squad": False, "squad2": True}

# Names of tasks become names of folders.
_FOLDER_NAME = re.compile(r"\w[\w.+ -]{0,99}")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Origin of a task's examples: a local folder, the hub, or tables of the user."""

    panel: ClassVar = "Data"

    data: DataFolder = None
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
    questions: Annotated[
        str | None,
        typer.Option(
            "--questions",
            metavar="<squad|squad2>",
            help="your own files are questions about paragraphs, in the JSON of SQuAD, each with an answer, "
            "or of SQuAD 2.0, some without",
        ),
    ] = None
    tags: Annotated[
        bool,
        typer.Option(
            "--tags",
            help="your own files are words with a tag each: columns as of CoNLL, or .jsonl with the lists "
            "tokens and tags (or --text-columns and --label-column)",
        ),
    ] = False
    max_length: Annotated[
        int | None,
        typer.Option(
            help="maximum tokens per example; if omitted, that of a trained model, or the default of task or "
            "command"
        ),
    ] = None
    doc_stride: Annotated[
        int | None,
        typer.Option(
            help="questions: tokens between the starts of two windows of a long paragraph, 128 in BERT's "
            "run_squad.py [default: windows share 128 tokens]"
        ),
    ] = None
    max_context: Annotated[
        bool | None,
        typer.Option(
            "--max-context/--no-max-context",
            help="questions: an answer starts in the window with most context of its first token, as in "
            "BERT's run_squad.py [default: in any]",
        ),
    ] = None
    null_score_diff_threshold: Annotated[
        float | None,
        typer.Option(
            help="questions of squad2: no answer if its score exceeds that of the best one by more "
            "[default: 0]"
        ),
    ] = None
    n_best_size: Annotated[
        int | None,
        typer.Option(
            help="questions: number of best tokens in a window at which an answer may start, and end "
            "[default: 20]"
        ),
    ] = None
    max_answer_length: Annotated[
        int | None, typer.Option(help="questions: maximum tokens of an answer [default: 30]")
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError for options that do not apply, and for a length without room for a token."""
        require_numbers(
            {
                "--max-length": self.max_length,
                "--doc-stride": self.doc_stride,
                "--n-best-size": self.n_best_size,
                "--max-answer-length": self.max_answer_length,
            }
        )
        if not self.user_files:
            options = {
                "--text-columns": self.text_columns != "text",
                "--label-column": self.label_column != "label",
                "--regression": self.regression,
                "--labels": self.labels,
                "--drop-empty": self.drop_empty,
                "--lm": self.lm,
                "--questions": self.questions,
                "--tags": self.tags,
            }
            require_applicable(options, "--train-file or --validation-file")
        for option, value, values in (
            ("--lm", self.lm, LANGUAGE_MODELS),
            ("--questions", self.questions, QUESTIONS),
        ):
            if value is not None and value not in values:
                raise ValueError(f"{option} must be {' or '.join(values)}, got {value!r}")
        forms = {"--lm": self.lm, "--questions": self.questions, "--tags": self.tags or None}
        named = [option if value is True else f"{option} {value}" for option, value in forms.items() if value]
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]} describe different files: omit one")
        of_tables = {"--drop-empty": self.drop_empty, "--regression": self.regression}
        if not self.tags:
            of_tables |= {
                "--text-columns": self.text_columns != "text",
                "--label-column": self.label_column != "label",
                "--labels": self.labels is not None,
                "--label-map": self.label_map is not None,
            }
        for option, is_given in of_tables.items():
            if is_given and named:
                raise ValueError(f"{option} belongs to a table, and {named[0]} reads other files: omit it")

    @property
    def user_files(self) -> bool:
        """Whether the user passes files for a task."""
        return self.train_file is not None or self.validation_file is not None

    @property
    def has_labels(self) -> bool:
        """Whether the user passes files whose labels a trained model may define."""
        return self.user_files and self.lm is None and self.questions is None

    @property
    def kind(self) -> Kind:
        """Kind of the task in the user's files with labels."""
        return "tokens" if self.tags else "classification"

    @property
    def text_format(self) -> TextFormat:
        """Format in which a model reads the examples; None where the options do not say."""
        from sparsebert.tasks import TextFormat

        return TextFormat(
            self.max_length,
            doc_stride=self.doc_stride,
            max_context=self.max_context,
            null_score_diff_threshold=self.null_score_diff_threshold,
            n_best_size=self.n_best_size,
            max_answer_length=self.max_answer_length,
        )

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
        from sparsebert.tasks import TASKS, find_task, load_files, load_questions, load_tags, load_texts
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
        defined = labels is not None or outputs is not None or not self.has_labels
        if self.train_file is None and not (validates and defined):
            raise ValueError("--train-file is missing: your own task needs a table to train on")
        require_files({"--train-file": self.train_file, "--validation-file": self.validation_file})
        if self.lm is not None:
            kind = LANGUAGE_MODELS[self.lm]
            return load_texts(self.train_file, self.validation_file, kind=kind, name=task)
        if self.questions is not None:
            no_answer = QUESTIONS[self.questions]
            return load_questions(self.train_file, self.validation_file, no_answer=no_answer, name=task)
        if labels is None and outputs is not None and not self.regression:
            labels = list(data_labels(outputs, self.label_pairs))
        if self.tags:
            tagged = load_tags(
                self.train_file,
                self.validation_file,
                words="tokens" if self.text_columns == "text" else self.text_columns,
                tags="tags" if self.label_column == "label" else self.label_column,
                labels=labels,
                label_map=self.label_pairs,
                name=task,
            )
            print_classes(tagged)
            return tagged
        try:
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
        except ValueError as error:
            if "no column" in str(error) and ".txt:" in str(error):
                raise ValueError(f"{error}; if it is running text, add --lm masked or --lm causal") from None
            raise
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
        require_applicable(options | self.of_questions, "--task")

    @property
    def of_questions(self) -> dict[str, object]:
        """The options about how questions are answered."""
        return {
            "--doc-stride": self.doc_stride,
            "--max-context": self.max_context,
            "--null-score-diff-threshold": self.null_score_diff_threshold,
            "--n-best-size": self.n_best_size,
            "--max-answer-length": self.max_answer_length,
        }

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
