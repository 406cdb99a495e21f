"""Tasks from the Hugging Face hub, loaded by the ``datasets`` library."""

from __future__ import annotations

from typing import Any

from sparsebert.tasks.examples import Example, Examples, Question
from sparsebert.tasks.registry import Task
from sparsebert.tasks.squad import checked
from sparsebert.tasks.tables import label_parser
from sparsebert_kernels.errors import first_line


def load_split(task: Task, split: str) -> tuple[Examples, str]:
    """Load a split.

    Returns:
        The examples, and their origin.

    Raises:
        ValueError: In one line, if the split is unavailable (no network, no library), a column is missing, or
            the labels or their order differ from the task's.
    """
    where = f"{'/'.join(task.hub)} on the hub"
    try:
        import datasets

        dataset: Any = datasets.load_dataset(*task.hub, split=split)
    except Exception as error:  # The library, the network and the hub raise too many kinds to name.
        raise ValueError(
            f"cannot load {task.name} from the hub ({first_line(error)}); pass a folder with its files"
        ) from None
    columns = [name for name in (*task.columns, task.label) if name]
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise ValueError(
            f"{where}, {split}: no column {missing[0]!r}; the columns are {', '.join(dataset.column_names)}"
        )
    source = f"{where}, {split} ({dataset._fingerprint})"
    if task.models_language:
        return [line for line in dataset["text"] if line.strip()], source
    if task.kind == "span":
        return [_question(row, where) for row in dataset], source
    names = getattr(dataset.features[task.label], "names", None)
    if task.kind == "classification" and tuple(names or ()) != task.labels:
        raise ValueError(f"{where}: labels must be {', '.join(task.labels)} for {task.name}, got {names}")
    # The hub stores indices, and -1 for a label that is not public.
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
