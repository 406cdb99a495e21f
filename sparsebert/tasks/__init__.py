"""Task data: GLUE, SQuAD, WikiText-2 and files of one's own, read, encoded and batched."""

from __future__ import annotations

import os

from sparsebert.tasks import hub as _hub
from sparsebert.tasks import local as _folder
from sparsebert.tasks.collation import Collator, collate
from sparsebert.tasks.encoding import Encoded, EncodedOnce, EncodedQuestions, encode
from sparsebert.tasks.examples import Example, Examples, Question, TaskData, require_usable
from sparsebert.tasks.label_order import label_config, require_label_order
from sparsebert.tasks.local import load_files
from sparsebert.tasks.registry import TASKS, Task, find_task
from sparsebert.tasks.squad import answer_texts, best_answers

__all__ = [
    "TASKS",
    "Collator",
    "Encoded",
    "EncodedOnce",
    "EncodedQuestions",
    "Example",
    "Examples",
    "Question",
    "Task",
    "TaskData",
    "answer_texts",
    "best_answers",
    "collate",
    "encode",
    "find_task",
    "label_config",
    "load",
    "load_files",
    "require_label_order",
]


def load(task: str | Task, folder: str | os.PathLike[str] | None = None, *, train: bool = True) -> TaskData:
    """A task's examples from a local folder, or from the Hugging Face hub where none is given.

    ``folder`` holds the tasks in folders of their usual names (``SST-2``, ``squad-v1.1``, ...), below
    ``glue/`` or not, or is such a folder itself. ``train=False`` leaves the training examples out and
    does not ask for their file. Raises ValueError in one line for an unknown task, a folder without the
    task's files, and bad content (file and line), empty or one-class data among it.
    """
    task = find_task(task)
    splits = [*(["train"] if train else []), *task.splits]
    examples: dict[str, Examples] = {}
    source: dict[str, str] = {}
    if folder is not None:
        for split, file in _folder.find_files(task, folder, splits).items():
            examples[split] = _folder.load_split(task, file)
            source[split] = file.name
    else:
        for split in splits:
            examples[split], source[split] = _hub.load_split(task, split)
            require_usable(examples[split], task, source[split])
    return TaskData(task, examples.pop("train", ()), examples, source)
