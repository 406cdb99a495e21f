"""Tasks from the Hugging Face hub, loaded by the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsebert.tasks.examples import Example, Examples, Question, Tagged
from sparsebert.tasks.registry import Kind, Task
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

        branch = {} if task.revision is None else {"revision": task.revision}
        dataset: Any = datasets.load_dataset(*task.hub, split=split, **branch)
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
    return _READERS[task.kind](task, dataset, f"{where}, {split}"), source


def _running_text(task: Task, dataset: Any, where: str) -> list[str]:
    return [line for line in dataset["text"] if line.strip()]


def _questions(task: Task, dataset: Any, where: str) -> list[Question]:
    return [
        checked(
            Question(
                row["id"],
                row["question"],
                row["context"],
                tuple(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)),
            ),
            where,
            no_answer=task.no_answer,
        )
        for row in dataset
    ]


def _tagged(task: Task, dataset: Any, where: str) -> list[Tagged]:
    _require_names(task, getattr(dataset.features[task.label], "feature", None), where)
    (words,) = task.columns
    return [Tagged(tuple(row[words]), tuple(row[task.label])) for row in dataset if row[words]]


def _labelled(task: Task, dataset: Any, where: str) -> list[Example]:
    if task.kind == "classification":
        _require_names(task, dataset.features[task.label], where)
    # The hub stores indices, and -1 for a label that is not public.
    written = tuple(map(str, range(task.num_labels)))
    parse = label_parser(task, written)
    return [
        Example(
            tuple(row[column] for column in task.columns),
            parse(str(row[task.label]), f"{where}, row {number}"),
        )
        for number, row in enumerate(dataset)
    ]


def _require_names(task: Task, feature: Any, where: str) -> None:
    """Raise ValueError unless the labels of a data set are the task's, in their order."""
    names = getattr(feature, "names", None)
    if tuple(names or ()) != task.labels:
        raise ValueError(f"{where}: labels must be {', '.join(task.labels)} for {task.name}, got {names}")


_READERS: Mapping[Kind, Callable[[Task, Any, str], Examples]] = {
    "classification": _labelled,
    "regression": _labelled,
    "span": _questions,
    "tokens": _tagged,
    "mlm": _running_text,
    "clm": _running_text,
}
