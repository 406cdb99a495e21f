"""A task's examples, from a local folder or the Hugging Face hub."""

from __future__ import annotations

import os

from sparsebert.tasks import hub, local
from sparsebert.tasks.examples import Examples, TaskData, require_usable
from sparsebert.tasks.registry import Task, find_task

# A folder with the task's files, the examples themselves, or None for the hub.
Data = str | os.PathLike[str] | TaskData | None


def load(task: str | Task, folder: str | os.PathLike[str] | None = None, *, train: bool = True) -> TaskData:
    """Load a task's examples.

    Args:
        task: A name of :data:`sparsebert.tasks.TASKS`, or a task.
        folder: A folder that holds the tasks in folders of their usual names (``SST-2``, ``squad-v1.1``,
            ...), directly or below ``glue/``, or such a task folder itself. None loads from the hub.
        train: Whether to load the training examples; if False, their file need not exist.

    Raises:
        ValueError: In one line, for an unknown task, a folder without the task's files, and invalid content
            (with file and line), including empty data and data of a single class.
    """
    task = find_task(task)
    splits = [*(["train"] if train else []), *task.splits]
    examples: dict[str, Examples] = {}
    source: dict[str, str] = {}
    if folder is not None:
        for split, file in local.find_files(task, folder, splits).items():
            examples[split] = local.load_split(task, file)
            source[split] = file.name
    else:
        for split in splits:
            examples[split], source[split] = hub.load_split(task, split)
            require_usable(examples[split], task, source[split])
    return TaskData(task, examples.pop("train", ()), examples, source)
