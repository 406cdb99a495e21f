"""Tasks from local files: copies of the public data sets, and tables of the user."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from sparsebert.tasks.examples import Example, Examples, TaskData, require_usable
from sparsebert.tasks.registry import Layout, Task
from sparsebert.tasks.squad import read_squad
from sparsebert.tasks.tables import Column, label_parser, lines_of, read_columns, read_text


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
    elif task.kind == "mlm":
        examples = [line for line in lines_of(read_text(file)) if line.strip()]
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


def load_files(
    train: str | os.PathLike[str] | None,
    validation: str | os.PathLike[str],
    *,
    columns: Sequence[str],
    label: str,
    labels: Sequence[str] | None = None,
    regression: bool = False,
    name: str = "own",
) -> TaskData:
    """Load a task of the user from two tables in a format of :func:`read_columns`.

    Args:
        train: Table to train on; None if ``labels`` or ``regression`` define the task.
        validation: Table to evaluate on.
        columns: One or two text columns.
        label: The label column.
        labels: The classes; by default the classes in ``train``, in numerical order if all are numbers, else
            in alphabetical order.
        regression: Whether labels are scores.
        name: The task's name.

    Raises:
        ValueError: In one line, with file and line, for missing columns, labels outside the classes, and
            empty or one-class data.
        FileNotFoundError: For a missing file.
    """
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"text columns must be one or two, got {len(columns)}")
    if regression:
        labels = ()
    elif labels is None:
        if train is None:
            raise ValueError("labels are missing: pass them, or a table to train on")
        labels = _classes([values[0] for _, values in read_columns(Path(train), [label])])
    task = Task(
        name=name,
        kind="regression" if regression else "classification",
        metrics=("pearson", "spearman") if regression else ("accuracy", "macro_f1"),
        labels=tuple(labels),
        columns=tuple(columns),
        label=label,
    )
    splits: dict[str, list[Example]] = {}
    source: dict[str, str] = {}
    for split, path in (("train", train), ("validation", validation)):
        if path is not None:
            splits[split] = read_examples(task, Path(path), columns, label, task.labels)
            require_usable(splits[split], task, os.fspath(path))
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            source[split] = f"{Path(path).name} (sha256:{digest[:16]})"
    return TaskData(task, splits.pop("train", []), splits, source)


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    distinct = set(labels)
    try:
        return tuple(sorted(distinct, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(distinct))
