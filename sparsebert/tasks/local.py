"""Tasks from local files: copies of the public data sets, and tables of the user."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sparsebert.tasks.entity_scores import marks_entities
from sparsebert.tasks.examples import Example, Examples, Question, TaskData, require_usable
from sparsebert.tasks.label_cleaning import classes_of, dropped_rows, read_table, require_distinct
from sparsebert.tasks.label_order import with_label_map
from sparsebert.tasks.registry import (
    BLOCK_TOKENS,
    ENTITY_METRICS,
    LANGUAGE_METRICS,
    TAG_METRICS,
    TASKS,
    Kind,
    Layout,
    Task,
)
from sparsebert.tasks.squad import read_squad
from sparsebert.tasks.tables import Column, label_parser, lines_of, read_columns, read_text, stripped
from sparsebert.tasks.tag_files import read_tags, tagged

File = str | os.PathLike[str]


def find_files(task: Task, folder: str | os.PathLike[str], splits: Sequence[str]) -> dict[str, Path]:
    """Return the files of these splits, in ``folder`` itself, in its folder of the task, or below ``glue/``.

    Raises:
        ValueError: If the folder is missing or lacks a file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder of task data")
    layout = task.layout
    if layout is None:
        raise ValueError(f"task {task.name} has no standard file names; pass its files instead of {root}")
    places = [
        place for place in (root / "glue" / layout.folder, root / layout.folder, root) if place.is_dir()
    ]
    for place in places:
        for names in layout.files:
            files = {split: place / names[split] for split in splits}
            if all(file.is_file() for file in files.values()):
                return files
    wanted = " or ".join(
        dict.fromkeys(" and ".join(names[split] for split in splits) for names in layout.files)
    )
    raise ValueError(
        f"{places[0]} does not hold {task.name}; expected {wanted}{_subfolder(root, places[0], layout)}"
    )


def _subfolder(root: Path, place: Path, layout: Layout) -> str:
    return f" in {layout.folder}/" if place == root else ""


def load_split(task: Task, file: Path) -> Examples:
    """Load a split from its file. Raises ValueError in one line, with file and line, for bad content."""
    examples: Examples = _READERS[task.kind](task, file)
    require_usable(examples, task, str(file))
    return examples


def _table(task: Task, file: Path) -> list[Example]:
    layout = task.layout
    assert layout is not None
    return read_examples(task, file, layout.columns, layout.label, layout.labels)


def read_examples(
    task: Task, file: Path, columns: Sequence[Column], label: Column, written: Sequence[str]
) -> list[Example]:
    """Return the rows of a table as examples; ``written`` holds the file's labels in the task's order."""
    parse = label_parser(task, written)
    return [
        Example(values[:-1], parse(values[-1], f"{file}:{line}"))
        for line, values in read_columns(file, [*columns, label])
    ]


def load_texts(train: File | None, validation: File | None, *, kind: Kind, name: str) -> TaskData:
    """Load running text of the user, to train or evaluate a language model on.

    Args:
        train: Text file to train on; None to evaluate only.
        validation: Text file to evaluate on; None where nothing is evaluated.
        kind: "mlm" for masked, "clm" for causal language modelling.
        name: The task's name.

    Raises:
        ValueError: For a file without text, or one that is not UTF-8.
        FileNotFoundError: For a missing file.
    """
    metrics, length = LANGUAGE_METRICS[kind], BLOCK_TOKENS[kind]
    task = Task(name=name, kind=kind, metrics=metrics, columns=("text",), label="", max_length=length)
    return _load_splits(task, train, validation, _running_text)


def load_questions(
    train: File | None, validation: File | None, *, no_answer: bool = False, name: str
) -> TaskData:
    """Load the user's questions about paragraphs, in files of the form of SQuAD.

    Args:
        train: File to train on; None to evaluate only.
        validation: File to evaluate on; None where nothing is evaluated.
        no_answer: Whether questions may have no answer, as in SQuAD 2.0.
        name: The task's name.

    Raises:
        ValueError: As :func:`sparsebert.tasks.squad.read_squad`, and for a file without questions.
        FileNotFoundError: For a missing file.
    """
    task = replace(TASKS["squad2" if no_answer else "squad"], name=name, hub=(), layout=None)
    return _load_splits(task, train, validation, partial(_questions, task))


def load_tags(
    train: File | None,
    validation: File | None,
    *,
    words: str = "tokens",
    tags: str = "tags",
    labels: Sequence[str] | None = None,
    label_map: Mapping[str, str] | None = None,
    name: str,
) -> TaskData:
    """Load the user's words with tags, in the files of :func:`sparsebert.tasks.tag_files.read_tags`.

    Tags such as "O", "B-PER" and "I-PER" are judged by the entities that they mark, others by their accuracy.

    Args:
        train: File to train on; None if ``labels`` define the task.
        validation: File to evaluate on; None where nothing is evaluated.
        words: Key of the words in JSON lines.
        tags: Key of the tags in JSON lines.
        labels: The tags in the order of the model's outputs; by default those in ``train``, in alphabetical
            order.
        label_map: As for :func:`load_files`.
        name: The task's name.

    Raises:
        ValueError: As :func:`sparsebert.tasks.tag_files.read_tags`, for tags outside ``labels``, and for a
            file with no text or a single tag.
        FileNotFoundError: For a missing file.
    """
    texts = {
        Path(file): read_tags(Path(file), words, tags) for file in (train, validation) if file is not None
    }
    if labels is None and train is None:
        raise ValueError("labels are missing: pass them, or a file to train on")
    if labels is None:
        labels = sorted({tag for text in texts[Path(str(train))] for tag in text.tags})
    task = Task(
        name=name,
        kind="tokens",
        metrics=ENTITY_METRICS if marks_entities(labels) else TAG_METRICS,
        labels=tuple(labels),
        columns=(words,),
        label=tags,
    )
    data = _load_splits(task, train, validation, lambda file: tagged(texts[file], task.labels, file))
    return replace(data, task=with_label_map(task, label_map or {}))


def _load_splits(
    task: Task, train: File | None, validation: File | None, read: Callable[[Path], Examples]
) -> TaskData:
    """Return the user's examples by split, from the files that there are."""
    splits: dict[str, Examples] = {}
    source: dict[str, str] = {}
    for split, path in (("train", train), ("validation", validation)):
        if path is not None:
            splits[split] = read(Path(path))
            require_usable(splits[split], task, str(path))
            source[split] = _fingerprint(Path(path))
    return TaskData(task, splits.pop("train", []), splits, source)


def _fingerprint(file: Path) -> str:
    return f"{file.name} (sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]})"


def _running_text(file: Path) -> list[str]:
    return [line for line in lines_of(read_text(file)) if line.strip()]


def _questions(task: Task, file: Path) -> list[Question]:
    return read_squad(file, no_answer=task.no_answer)


# How the files of a copy of a data set are read.
_READERS: Mapping[Kind, Callable[[Task, Path], Examples]] = {
    "classification": _table,
    "regression": _table,
    "span": _questions,
    "tokens": lambda task, file: tagged(read_tags(file), task.labels, file),
    "mlm": lambda task, file: _running_text(file),
    "clm": lambda task, file: _running_text(file),
}


def load_files(
    train: File | None,
    validation: File | None,
    *,
    columns: Sequence[str],
    label: str,
    labels: Sequence[str] | None = None,
    regression: bool = False,
    name: str = "own",
    drop_empty: bool = False,
    label_map: Mapping[str, str] | None = None,
) -> TaskData:
    """Load a task of the user from two tables in a format of :func:`read_columns`.

    Blanks around labels are ignored.

    Args:
        train: Table to train on; None if ``labels`` or ``regression`` define the task.
        validation: Table to evaluate on; None where nothing is evaluated.
        columns: One or two text columns.
        label: The label column.
        labels: The classes in the order of the model's outputs; by default the classes in ``train``, in
            numerical order if all are numbers, else in alphabetical order.
        regression: Whether labels are scores.
        name: The task's name.
        drop_empty: Drop and count rows without a text or a label instead of refusing them.
        label_map: Label -> label or output of a trained checkpoint
            (:func:`sparsebert.tasks.label_order.with_label_map`).

    Raises:
        ValueError: In one line, with file and line, for missing columns, rows without a text or a label,
            labels outside the classes, labels that look like one class ("yes" and "Yes", 1 and 1.0), and
            empty or one-class data.
        FileNotFoundError: For a missing file.
    """
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"text columns must be one or two, got {len(columns)}")
    if regression and (labels or label_map):
        raise ValueError("labels of a regression are scores: omit the list and the map of labels")
    if train is None and labels is None and not regression:
        raise ValueError("labels are missing: pass them, or a table to train on")
    listed = tuple(stripped(each) for each in labels or ())
    if "" in listed or len(set(listed)) < len(listed):
        raise ValueError(f"labels must be different and not empty, got {', '.join(map(repr, labels or ()))}")
    tables = {
        split: read_table(Path(path), columns, label, classes=listed, drop_empty=drop_empty)
        for split, path in (("train", train), ("validation", validation))
        if path is not None
    }
    if not regression:
        require_distinct(list(tables.values()), listed)
    task = Task(
        name=name,
        kind="regression" if regression else "classification",
        metrics=("pearson", "spearman") if regression else ("accuracy", "macro_f1"),
        labels=() if regression else listed or classes_of(tables["train"]),
        columns=tuple(columns),
        label=label,
    )
    splits: dict[str, list[Example]] = {}
    source: dict[str, str] = {}
    for split, table in tables.items():
        parse = label_parser(
            task, task.labels, "" if train else "; name the label that is meant (--label-map)"
        )
        splits[split] = [
            Example(row.texts, parse(row.label, f"{table.path}:{row.line}")) for row in table.rows
        ]
        require_usable(splits[split], task, str(table.path))
        source[split] = _fingerprint(table.path)
        if table.dropped:
            source[split] += f" without {table.dropped} empty rows"
    if labels is not None and train is not None:
        source["labels"] = ", ".join(task.labels)
    task = with_label_map(task, label_map or {})
    return TaskData(task, splits.pop("train", []), splits, source, dropped_rows(tables))
