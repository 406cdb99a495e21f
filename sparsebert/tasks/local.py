"""Tasks from local files: copies of the public data sets, and tables of the user."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsebert.tasks.examples import Example, Examples, TaskData, require_usable
from sparsebert.tasks.label_cleaning import classes_of, dropped_rows, read_table, require_distinct
from sparsebert.tasks.label_order import with_label_map
from sparsebert.tasks.registry import BLOCK_TOKENS, LANGUAGE_METRICS, Kind, Layout, Task
from sparsebert.tasks.squad import read_squad
from sparsebert.tasks.tables import Column, label_parser, lines_of, read_columns, read_text, stripped


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
    if task.kind == "span":
        examples: Examples = read_squad(file)
    elif task.models_language:
        examples = _running_text(file)
    else:
        layout = task.layout
        assert layout is not None
        examples = read_examples(task, file, layout.columns, layout.label, layout.labels)
    require_usable(examples, task, str(file))
    return examples


def read_examples(
    task: Task, file: Path, columns: Sequence[Column], label: Column, written: Sequence[str]
) -> list[Example]:
    """Return the rows of a table as examples; ``written`` holds the file's labels in the task's order."""
    parse = label_parser(task, written)
    return [
        Example(values[:-1], parse(values[-1], f"{file}:{line}"))
        for line, values in read_columns(file, [*columns, label])
    ]


def load_texts(
    train: str | os.PathLike[str] | None, validation: str | os.PathLike[str] | None, *, kind: Kind, name: str
) -> TaskData:
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
    splits: dict[str, Examples] = {}
    source: dict[str, str] = {}
    for split, path in (("train", train), ("validation", validation)):
        if path is not None:
            splits[split] = _running_text(Path(path))
            require_usable(splits[split], task, str(path))
            source[split] = _fingerprint(Path(path))
    return TaskData(task, splits.pop("train", []), splits, source)


def _fingerprint(file: Path) -> str:
    return f"{file.name} (sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]})"


def _running_text(file: Path) -> list[str]:
    return [line for line in lines_of(read_text(file)) if line.strip()]


def load_files(
    train: str | os.PathLike[str] | None,
    validation: str | os.PathLike[str] | None,
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
