"""Tasks from a local folder."""

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
    """The files of these splits: below ``folder``, its ``glue/``, or in it itself.

    Raises ValueError if the folder is missing or does not hold them all.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder of task data")
    layout = task.layout
    if layout is None:
        raise ValueError(f"{task.name} has no files of known names: name them")
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
        f"{places[0]} does not hold {task.name}: {wanted} expected{_how(root, places[0], layout)}"
    )


def _how(root: Path, place: Path, layout: Layout) -> str:
    return f" in {layout.folder}/" if place == root else ""


def load_split(task: Task, file: Path) -> Examples:
    """A split's examples from its file. ValueError in one line, with file and line, for bad content."""
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
    """Rows of a table as examples; ``written``: the labels as the file writes them, in the task's order."""
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
    """A task of one's own, from two tables that :func:`read_columns` can read.

    ``columns``: one text column or two; ``label``: the column of the label. The classes are ``labels``, or
    without them those of ``train``, in the order of their numbers if all are numbers, else of the alphabet.
    ``train``: None for no training examples, where ``labels`` (or ``regression``) are given.
    Raises ValueError in one line, with file and line, for missing columns, labels that are none of the
    classes, and empty or one-class data; FileNotFoundError for a missing file.
    """
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"one or two text columns are expected, not {len(columns)}")
    if regression:
        labels = ()
    elif labels is None:
        if train is None:
            raise ValueError("without a file to train on the labels are unknown: give them")
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
    found = set(labels)
    try:
        return tuple(sorted(found, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(found))
