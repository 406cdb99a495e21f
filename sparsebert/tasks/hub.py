"""Tasks from the Hugging Face hub, by the `datasets` library."""

from __future__ import annotations

from typing import Any

from sparsebert.tasks.examples import Example, Examples, Question
from sparsebert.tasks.registry import Task
from sparsebert.tasks.squad import checked
from sparsebert.tasks.tables import label_parser
from sparsebert_kernels.errors import first_line


def load_split(task: Task, split: str) -> tuple[Examples, str]:
    """A split's examples and where they come from.

    Raises ValueError in one line if it cannot be had (no network, no library), or if the dataset lacks a
    column or names other labels than the task, or in another order.
    """
    where = f"{'/'.join(task.hub)} on the hub"
    try:
        import datasets

        dataset: Any = datasets.load_dataset(*task.hub, split=split)
    except Exception as error:  # of the library, the network or the hub: too many kinds to name
        raise ValueError(
            f"{task.name} cannot be loaded from the hub ({first_line(error)}): pass a folder with it"
        ) from None
    needed = [name for name in (*task.columns, task.label) if name]
    if missing := [name for name in needed if name not in dataset.column_names]:
        raise ValueError(
            f"{where}, {split}: no column {missing[0]!r}; it has {', '.join(dataset.column_names)}"
        )
    source = f"{where}, {split} ({dataset._fingerprint})"
    if task.kind == "mlm":
        return [line for line in dataset["text"] if line.strip()], source
    if task.kind == "span":
        return [_question(row, where) for row in dataset], source
    names = getattr(dataset.features[task.label], "names", None)
    if task.kind == "classification" and tuple(names or ()) != task.labels:
        raise ValueError(f"{where}: labels {names}; {task.name} expects {', '.join(task.labels)}")
    # The hub stores indices: -1, for a label that is not public, is no label.
    written = tuple(map(str, range(task.num_labels)))
    parse = label_parser(task, written)
    return [
        Example(
            tuple(row[column] for column in task.columns),
            parse(str(row[task.label]), f"{where}, {split}, row {number}"),
        )
        for number, row in enumerate(dataset)
    ], source


def _question(row: dict[str, Any], where: str) -> Question:
    answers = tuple(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
    return checked(Question(row["id"], row["question"], row["context"], answers), where)
